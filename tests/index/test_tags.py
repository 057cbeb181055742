"""Words of images: weighed as scikit-learn weighs them, mixed with cosines, read from a file."""

import json
import re
import subprocess
import sys
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import linear_kernel

from lookalike.artifacts.arrays import save_strings
from lookalike.artifacts.descriptions import Embedding, Network
from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import unit_length
from lookalike.collection.collection import Gallery
from lookalike.collection.query import Query
from lookalike.index import tags
from lookalike.index.searcher import Matched
from lookalike.index.tags import Tags
from proof.patience import patience
from tests.helpers.project import ROOT
from tests.helpers.small_collection import NO_TAGS
from tests.helpers.tagged_vectors import circle, paths, searcher_of

WORDS = ["sea", "sky", "grass", "deep", "red", "Café", "t-shirt", "7", "of", "fire"]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))


# --- weights --------------------------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    """Rows 2, 5 and 9; "red" is in two of three texts, "shoe" in two, twice in one, "hat" in one."""
    fitted = Tags.fit({2: "red shoe", 5: "Red hat", 9: "shoe shoe"}, 0.3)
    assert fitted.terms == ["hat", "red", "shoe"] and fitted.images == 3
    rare, common = 1 + log(4 / 2), 1 + log(4 / 3)
    assert fitted.idf == pytest.approx([rare, common, common])
    rows, cosines = fitted.match(fitted.query("red shoe"))
    assert rows.tolist() == [2, 5, 9]
    one = 1 / sqrt(2)  # two words of one idf
    assert cosines == pytest.approx([1, one * common / sqrt(common**2 + rare**2), one])
    rows, cosines = fitted.match(fitted.query("hat red red, unheard of"))
    red = (1 + log(2)) * common
    assert rows.tolist() == [2, 5]
    length = sqrt(rare**2 + red**2)
    both = (rare * rare + red * common) / length / sqrt(rare**2 + common**2)
    assert cosines == pytest.approx([red / length * one, both])


TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


@given(texts=st.lists(TEXT, min_size=1, max_size=8), query=TEXT)
def test_cosines_are_scikit_learns(texts: list[str], query: str) -> None:
    vectorizer = TfidfVectorizer(analyzer=tags.words, sublinear_tf=True)
    theirs = linear_kernel(vectorizer.fit_transform(texts), vectorizer.transform([query]))[:, 0]  # float64 (N,)
    fitted = Tags.fit(dict(enumerate(texts)), 0.5)
    if not theirs.any():
        with pytest.raises(LookalikeError, match="no tag contains a word of"):
            fitted.query(query)
        return
    rows, cosines = fitted.match(fitted.query(query))
    assert rows.tolist() == np.flatnonzero(theirs > 0).tolist()
    assert cosines == pytest.approx(theirs[rows], abs=1e-6)


def test_an_images_own_words_are_a_query_for_it() -> None:
    texts = {0: "red shoe", 3: "red red hat", 4: "blue"}
    fitted = Tags.fit(texts, 0.3)
    for row, text in texts.items():
        asked, own = fitted.query(text), fitted.own(row)
        assert own.terms.tolist() == asked.terms.tolist()
        assert own.weights == pytest.approx(asked.weights, abs=1e-6)
    assert fitted.own(1) is None


def test_tags_come_back_from_disk_and_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Tags.fit({1: "red shoe", 2: "hat"}, 0.25).save(tmp_path / name, {"b.png": "red shoe", "c.png": "hat"})
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    back = tags.load(tmp_path / "one")
    assert (back.weight, back.images, back.terms) == (0.25, 2, ["hat", "red", "shoe"])
    assert back.match(back.query("shoe"))[0].tolist() == [1]
    assert tags.load_texts(tmp_path / "one") == {"b.png": "red shoe", "c.png": "hat"}
    assert tags.load(tmp_path) is None and tags.load_texts(tmp_path) == {}


# --- fusion ---------------------------------------------------------------------------------------------------------


def test_fusion_by_hand() -> None:
    """Cosines 1, 0.5, 0 and -1 by picture; words move row 3 from the last place to the first."""
    searcher = searcher_of(circle(0, 60, 90, 180))
    words = Matched(np.array([1, 3]), np.array([0.2, 1], np.float32))
    found = searcher.fuse(circle(0), words, 0.75, 2)
    assert found.rows.tolist() == [3, 1]
    assert found.cosines == pytest.approx([0.25 * -1 + 0.75 * 1, 0.25 * 0.5 + 0.75 * 0.2], abs=1e-6)
    assert found.visual == pytest.approx([-1, 0.5], abs=1e-6) and found.text == pytest.approx([1, 0.2])
    assert searcher.fuse(circle(0), words, 0.1, 4).rows.tolist() == [0, 1, 2, 3]
    assert searcher.fuse(circle(0), words, 1, 4).rows.tolist() == [3, 1]  # the rest shares no word
    only = np.array([False, True, True, False])
    assert searcher.fuse(circle(0), Matched(np.array([1]), np.ones(1, np.float32)), 0.5, 3, only).rows.tolist() == [
        1,
        2,
    ]


@given(weight=st.floats(0.01, 0.99), k=st.integers(1, 60), seed=st.integers(0, 100), share=st.floats(0, 1))
def test_fusion_is_that_of_the_whole_collection(weight: float, k: int, seed: int, share: float) -> None:
    draw = np.random.default_rng(seed)
    vectors = unit_length(draw.standard_normal((60, 6)).astype(np.float32))
    words = np.where(draw.random(60) < share, draw.random(60), 0).astype(np.float32)  # (N,)
    rows = np.flatnonzero(words)
    found = searcher_of(vectors).fuse(vectors[:1], Matched(rows, words[rows]), weight, k)
    everything = (1 - weight) * (vectors @ vectors[0]) + weight * words
    assert found.cosines == pytest.approx(np.sort(everything)[::-1][:k], abs=1e-6)
    assert everything[found.rows] == pytest.approx(found.cosines, abs=1e-6)
    assert len(set(found.rows.tolist())) == k


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{"kind": "hnsw", "neighbors": 16, "ef_construction": 100, "effort": 64},
                                  {"kind": "ivf", "lists": 8, "effort": 8}])  # fmt: skip
def test_an_approximate_index_compares_every_image_that_shares_a_word(kind: dict[str, Any]) -> None:
    vectors = unit_length(np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32))
    rows = np.arange(5, 2000, 3)
    cosines = np.random.default_rng(1).random(len(rows)).astype(np.float32)
    found = searcher_of(vectors, **kind).fuse(vectors[7:8], Matched(rows, cosines), 0.9, 20)
    words = np.zeros(2000, np.float32)
    words[rows] = cosines
    assert found.rows.tolist() == np.argsort(-(0.1 * (vectors @ vectors[7]) + 0.9 * words), kind="stable")[:20].tolist()


def test_of_equals_the_first_row_comes_first() -> None:
    searcher = searcher_of(circle(0, 0, 0, 0))
    same = Matched(np.array([1, 3]), np.full(2, 0.5, np.float32))
    assert searcher.fuse(circle(0), same, 0.5, 4).rows.tolist() == [1, 3, 0, 2]


# --- the file -------------------------------------------------------------------------------------------------------


PATHS = np.array(["a/1.png", "a/2.png", "b/ü.png"])


def test_a_file_is_read_as_people_write_it(tmp_path: Path) -> None:
    file = tmp_path / "tags.csv"
    file.write_text(
        'who,path, text\nme,b/ü.png,"Größe 7, rot"\n\nme,a/1.png, two\nme,a/2.png,-\n', encoding="utf-8-sig"
    )
    assert tags.read(file, PATHS) == {0: "two", 2: "Größe 7, rot"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,text\na/1.png,x\na/9.png,y\n", r"line 3: 'a/9\.png' is not in the collection; .* as 'a/1\.png'"),
        ("path,text\n./a/1.png,x\n", r"line 2: '\./a/1\.png' is not in the collection"),
        ("path,text\na/1.png,x\na/2.png,y\na/1.png,z\n", r"line 4: 'a/1\.png' is already in line 2; put both"),
        ("path,tags\na/1.png,x\n", r"first line must name the columns path,text; it names \['path', 'tags'\]"),
        ("path;text\na/1.png;x\n", r"must name the columns path,text; it names \['path;text'\]"),
        ("", r"must name the columns path,text; it names \[\]"),
        ("path,text\n", r"none of its 0 lines contains a word"),
        ("path,text\na/1.png,\na/2.png,...\n", r"none of its 2 lines contains a word"),
        ("path,text\na/1.png,red, round\n", r"line 2: 2 fields are expected; a text with a comma needs quotation"),
        ('path,text\na/1.png,"red\n', r"not a readable CSV .* unclosed quotation mark"),
        ("path,text\na/1.png,x\na/2.png,größe\n".encode("latin-1"), r"line 3: not UTF-8 .*; save it as UTF-8"),
        ("path,text\na/1.png,x\n".encode("utf-16"), r"line 1: not UTF-8 .*; save it as UTF-8"),
        ("path,text\na/1.png,x\n".encode("utf-16-le"), r"must name the columns path,text; it names"),
        (None, r"index\.tags\.file is .*tags\.csv, which does not exist; name a CSV"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_named(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    file = tmp_path / "tags.csv"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LookalikeError, match=message) as caught:
        tags.read(file, PATHS)
    assert "\n" not in str(caught.value) and "tags.csv" in str(caught.value)


def changed_params(folder: Path, **tags_section: object) -> Path:
    """params.yaml with few dimensions, and `file` and `weight` of index.tags."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["index"]["refine"].update(pca=4, augment=0, expand=0)
    content["index"]["tags"] = NO_TAGS | tags_section
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    return folder / "params.yaml"


def run_stage(folder: Path, params: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "stages/index.py", folder / "features", folder / "index", "--params", params]
    return subprocess.run(command, capture_output=True, text=True, timeout=patience(300), check=False)


@pytest.mark.slow
def test_the_stage_writes_tags_and_without_a_file_nothing_new(tmp_path: Path) -> None:
    source = tmp_path / "features"
    source.mkdir()
    np.save(source / "features.npy", np.random.default_rng(0).random((30, 8), np.float32))
    save_strings(source / "image_paths.npy", [f"{row:02}.png" for row in range(30)])
    save_strings(source / "labels.npy", ["a", "b"] * 15)
    Embedding(Network("Net", "random", "", "avg", 8, 1, "0" * 64), 32, "pad").save(source)
    assert run_stage(tmp_path, changed_params(tmp_path)).returncode == 0
    plain = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    assert not any(name.startswith("tags") for name in plain)
    assert "tagged" not in json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "tags.csv").write_text("path,text\n03.png,red shoe\n07.png,blue shoe\n")
    done = run_stage(tmp_path, changed_params(tmp_path, file=str(tmp_path / "tags.csv"), weight=0.5))
    assert done.returncode == 0, done.stderr
    written = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    assert {name: written[name] for name in plain} == plain
    trace = json.loads((tmp_path / "index.json").read_text())
    assert trace["tagged"] == 2 and set(trace["files"][0]) == set(written)
    assert sorted(set(written) - set(plain)) == sorted(
        ["tags.json", "tags_texts.json", *map("tags_{}.npy".format, tags.ARRAYS)]
    )
    gallery = Gallery(tmp_path / "index", tmp_path / "changes")
    assert gallery.tags.weight == 0.5
    assert paths(gallery.search(None, Query(5, text="shoe red"))[0]) == ["03.png", "07.png"]
    (tmp_path / "tags.csv").write_text("path,text\n03.png,red\n77.png,blue\n")
    done = run_stage(tmp_path, changed_params(tmp_path, file=str(tmp_path / "tags.csv")))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"index: error: .*tags\.csv, line 3: '77\.png' is not in the collection", done.stderr)
    assert {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()} == written
