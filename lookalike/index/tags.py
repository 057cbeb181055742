"""Tags: words that people gave to images, compared by TF-IDF.

    words     runs of letters, digits and underscores in a text, case folded, without accents
    weight    w(t, d) = (1 + ln tf(t, d)) idf(t), for each word t of an image or a query d, scaled to length 1
              idf(t) = 1 + ln((1 + n) / (1 + df(t))); n images have words, df(t) of them have the word t
    cosine    sum over t of w(t, query) w(t, image): 0 without a word in common, 1 for the same words

Source: Manning, Raghavan, Schuetze, Introduction to Information Retrieval, 6.2 to 6.4. scikit-learn's TfidfVectorizer
fits, and adds the ones in idf. Queries are weighted here, by the same formula, because a machine that only searches
has no scikit-learn. Words that no image has are ignored.

On disk an inverted file lies beside the index; a query reads only the entries of its own words:

    tags.json         weight, images, and the T words in order
    tags_idf.npy      float32, (T,)
    tags_starts.npy   int64, (T + 1,): word t has the entries starts[t] to starts[t + 1]
    tags_rows.npy     int32, (E,): the image of each entry, ascending within a word
    tags_weights.npy  float32, (E,)
    tags_texts.json   the text of each image, by its path
"""

import json
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from lookalike.base import csv_rows
from lookalike.base.errors import LookalikeError
from lookalike.base.files import write_json
from lookalike.base.params import Section

FILE, TEXTS_FILE = "tags.json", "tags_texts.json"
ARRAYS = ("idf", "starts", "rows", "weights")
HINTED = 5000  # up to this many words, similar ones are suggested, which takes milliseconds


class TextError(LookalikeError):
    """A text that the collection cannot be searched with. The fault is the query's, not the collection's."""


class Settings(Section, frozen=True):
    """Section `index.tags` of params.yaml."""

    file: str
    weight: Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class Words:
    """Words of a query: their numbers, int64 (m,), ascending, and weights, float32 (m,), of length 1."""

    terms: np.ndarray
    weights: np.ndarray


def words(text: str) -> list[str]:
    """Split a text into its words, in order.

    >>> words("Café-Tasse, ROT (No. 7)")
    ['cafe', 'tasse', 'rot', 'no', '7']
    """
    plain = unicodedata.normalize("NFKD", text).casefold()
    return re.findall(r"\w+", "".join(sign for sign in plain if not unicodedata.combining(sign)))


def read(file: Path, paths: np.ndarray) -> dict[int, str]:
    """Read a CSV with the columns path and text. Returns the text of each row that has words, rows ascending.

    paths  str, (N,), of the collection, sorted.

    Raises LookalikeError, which names the line, for a path that is unknown or repeated, for a file without any word,
    and for a table that `csv_rows.rows` rejects.
    """
    if not file.is_file():
        raise LookalikeError(f"index.tags.file is {file}, which does not exist; name a CSV of path,text, or data/none")
    row_of = {path: row for row, path in enumerate(paths.tolist())}
    found: dict[int, tuple[str, str]] = {}
    for where, fields in csv_rows.rows(file, ("path", "text")):
        row = row_of.get(fields["path"])
        if row is None:
            raise LookalikeError(
                f"{where}: {fields['path']!r} is not in the collection; write paths as in image_paths.npy, "
                f"such as {str(paths[0])!r}. Correct the path or delete the line (if the picture was rejected, "
                "data/processed/rejected.csv says so)"
            )
        if row in found:
            raise LookalikeError(
                f"{where}: {fields['path']!r} is already in {found[row][0].rpartition(', ')[2]}; put both texts "
                "into one line"
            )
        found[row] = where, fields["text"].strip()
    texts = {row: text for row, (_, text) in sorted(found.items()) if words(text)}
    if not texts:
        raise LookalikeError(
            f"{file}: none of its {len(found)} lines contains a word; fill the column text, or set "
            "index.tags.file to data/none"
        )
    return texts


class Tags:
    """Words of a collection's images, as an inverted file."""

    def __init__(
        self, weight: float, images: int, terms: list[str], idf: np.ndarray, starts: np.ndarray, rows: np.ndarray,
        weights: np.ndarray,
    ) -> None:  # fmt: skip
        """Take the arrays that the module's docstring describes; `weight` is that of words beside a picture."""
        self.weight, self.images, self.terms = weight, images, terms
        self.idf, self.starts, self.rows, self.weights = idf, starts, rows, weights

    @classmethod
    def fit(cls, texts: dict[int, str], weight: float) -> "Tags":
        """Weight the words of images. `texts` maps rows, ascending, to texts that each have a word."""
        from sklearn.feature_extraction.text import TfidfVectorizer  # seconds to import

        vectorizer = TfidfVectorizer(analyzer=words, sublinear_tf=True, dtype=np.float32)
        matrix = vectorizer.fit_transform(texts.values()).tocsc()  # (n, T)
        matrix.sort_indices()
        rows = np.array(list(texts), np.int32)[matrix.indices]
        terms = vectorizer.get_feature_names_out().tolist()
        idf, starts = vectorizer.idf_.astype(np.float32), matrix.indptr.astype(np.int64)
        return cls(weight, len(texts), terms, idf, starts, rows, matrix.data)

    def save(self, folder: Path, texts: dict[str, str]) -> None:
        """Write the tags, and the texts that they come from, by path, into an index's folder."""
        write_json(folder / FILE, {"weight": self.weight, "images": self.images, "terms": self.terms})
        write_json(folder / TEXTS_FILE, texts)
        for name in ARRAYS:
            np.save(folder / f"tags_{name}.npy", getattr(self, name), allow_pickle=False)

    def query(self, text: str) -> Words:
        """Weight the words of a query. Raises TextError if no image has any of them."""
        weighed = self.weigh(text)
        if weighed is None:
            raise TextError(f"no tag contains a word of {text!r}{self._hint(words(text))}")
        return weighed

    def weigh(self, text: str) -> Words | None:
        """Weight the words of a query; returns None if no image has any of them."""
        counts = {self._term(word): count for word, count in sorted(Counter(words(text)).items())}
        known = {term: count for term, count in counts.items() if term is not None}
        if not known:
            return None
        terms = np.array(list(known))
        weights = (1 + np.log(list(known.values()))) * self.idf[terms]
        return Words(terms, (weights / np.linalg.norm(weights)).astype(np.float32))

    def own(self, row: int) -> Words | None:
        """Return the words of an image; None if it has none."""
        entries = np.flatnonzero(self.rows == row)
        if not len(entries):
            return None
        return Words(np.searchsorted(self.starts, entries, side="right") - 1, np.asarray(self.weights[entries]))

    def match(self, query: Words) -> tuple[np.ndarray, np.ndarray]:
        """Find the images that share a word with a query.

        Returns rows, int64 (m,), ascending, and cosines, float32 (m,), above 0.
        """
        entries = [slice(self.starts[term], self.starts[term + 1]) for term in query.terms.tolist()]
        parts = [weight * self.weights[own] for own, weight in zip(entries, query.weights, strict=True)]
        rows, place = np.unique(np.concatenate([self.rows[own] for own in entries]), return_inverse=True)
        cosines = np.bincount(place, np.concatenate(parts))  # float64
        return rows.astype(np.int64), np.minimum(cosines, 1).astype(np.float32)

    def _term(self, word: str) -> int | None:
        place = bisect_left(self.terms, word)
        return place if place < len(self.terms) and self.terms[place] == word else None

    def _hint(self, asked: list[str]) -> str:
        from difflib import get_close_matches

        if len(self.terms) > HINTED:
            return ""
        near = [match for word in asked[:3] for match in get_close_matches(word, self.terms, n=2)]
        return f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""


def load_texts(folder: Path) -> dict[str, str]:
    """Read the text of each image of an index, by path; empty if the index has no tags."""
    try:
        return dict(json.loads((folder / TEXTS_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def load(folder: Path) -> Tags | None:
    """Open the tags of a verified index, arrays memory-mapped; returns None if it has none."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        # Views as plain arrays: indexing a np.memmap takes longer than reading the entries.
        maps = [np.asarray(np.load(folder / f"tags_{name}.npy", "r", allow_pickle=False)) for name in ARRAYS]
        return Tags(content["weight"], content["images"], content["terms"], *maps)
    except FileNotFoundError:
        return None
