"""Words of images: weighed as scikit-learn weighs them, mixed with what the picture looks like, in every face."""

from collections.abc import Callable
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_collection
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import linear_kernel
from small_collection import Built

from lookalike import indexes, tags
from lookalike.errors import LookalikeError
from lookalike.gallery import Gallery, Hit
from lookalike.indexes import Design
from lookalike.pictures import Pictures
from lookalike.refine import OFF, Refinement
from lookalike.searcher import Matched, Searcher
from lookalike.tags import Tags
from lookalike.vectors import unit_length

TEXTS = {
    "blue/00.jpg": "deep sea, water", "blue/01.jpg": "sky", "blue/02.jpg": "sea sky sea",
    "green/00.jpg": "grass", "green/01.jpg": "grass, deep forest", "red/00.jpg": "fire at sea",
}  # fmt: skip
WORDS = ["sea", "sky", "grass", "deep", "red", "Café", "t-shirt", "7", "of", "fire"]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """24 pictures in three colours, six of them with words."""
    return small_collection.build(tmp_path_factory.mktemp("tagged") / "data", texts=TEXTS)


@pytest.fixture
def opened(built: Built, tmp_path: Path) -> Pictures:
    return Pictures(built.folder / "index", built.folder / "model", tmp_path / "changes")


def paths(hits: list[Hit]) -> list[str]:
    return [hit.path for hit in hits]


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
        with pytest.raises(LookalikeError, match="no image's tags have a word of"):
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


def circle(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def searcher_of(vectors: np.ndarray, **design: Any) -> Searcher:
    refinement = Refinement.fit(vectors, OFF)
    return Searcher(refinement, indexes.build(vectors, Design(**({"kind": "flat", "storage": "float32"} | design))))


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


# --- a gallery ------------------------------------------------------------------------------------------------------


def test_weight_0_is_the_picture_alone_and_1_the_words_alone(built: Built, opened: Pictures) -> None:
    content = built.picture("red/05.jpg").read_bytes()
    assert opened.search(content, 24, text="sea", text_weight=0) == opened.search(content, 24)
    words = opened.search(None, 24, text="sea")
    assert paths(words) == ["blue/02.jpg", "blue/00.jpg", "red/00.jpg"]  # beside rarer words "sea" counts less
    assert [(hit.rank, hit.visual, hit.text == hit.cosine) for hit in words] == [(n, None, True) for n in (1, 2, 3)]
    both = opened.search(content, 24, text="sea", text_weight=1)
    assert [(hit.path, hit.cosine) for hit in both] == [(hit.path, hit.cosine) for hit in words]


def test_words_and_picture_are_mixed_by_the_indexs_weight(built: Built, opened: Pictures) -> None:
    content = built.picture("red/05.jpg").read_bytes()
    alone = {hit.path: hit.cosine for hit in opened.search(content, 24)}
    words = {hit.path: hit.cosine for hit in opened.search(None, 24, text="deep sea")}
    found = opened.search(content, 24, text="deep sea")
    for hit in found:
        assert hit.visual == pytest.approx(alone[hit.path], abs=1e-6) and hit.text == words.get(hit.path, 0)
        assert hit.cosine == pytest.approx(0.7 * hit.visual + 0.3 * hit.text, abs=1e-6)
    assert [hit.rank for hit in found] == list(range(1, 25))
    assert found == sorted(found, key=lambda hit: -hit.cosine)
    assert found[0].path == "red/00.jpg"  # the only red one at sea
    least = [hit for hit in found if hit.cosine >= 0.6]
    assert 0 < len(least) < 24 and opened.search(content, 24, 0.6, text="deep sea") == least
    blue = [hit for hit in found if hit.label == "blue"]
    assert paths(opened.search(content, 24, label="blue", text="deep sea")) == paths(blue)
    assert paths(opened.search(None, 24, label="blue", text="sea")) == ["blue/02.jpg", "blue/00.jpg"]


def test_an_image_of_the_collection_brings_its_own_words(opened: Pictures) -> None:
    gallery = opened.gallery
    hits = gallery.similar("blue/00.jpg", 23)
    assert "blue/00.jpg" not in paths(hits) and len(hits) == 23
    assert {hit.path for hit in hits if hit.text} == {"blue/02.jpg", "green/01.jpg", "red/00.jpg"}
    assert gallery.similar("blue/00.jpg", 23, text_weight=0)[0].text is None
    assert paths(gallery.similar("blue/00.jpg", 23, text_weight=1)) == ["green/01.jpg", "blue/02.jpg", "red/00.jpg"]
    assert gallery.similar("blue/07.jpg", 5) == gallery.similar("blue/07.jpg", 5, text_weight=0.9)  # it has none


def test_words_belong_to_a_path(built: Built, opened: Pictures) -> None:
    gallery, content = opened.gallery, built.picture("green/07.jpg").read_bytes()
    assert gallery.tagged() == 6
    opened.add("blue/new.jpg", "blue", content)
    assert "blue/new.jpg" not in paths(opened.search(None, 24, text="sea sky grass"))
    assert opened.search(content, 1, text="sea", text_weight=0.01)[0].text == 0
    opened.add("blue/02.jpg", "blue", content, replace=True)
    found = opened.search(None, 24, text="sea")
    assert paths(found)[0] == "blue/02.jpg" and gallery.tagged() == 6
    both = opened.search(content, 24, text="sea")
    assert both[0].path == "blue/02.jpg" and both[0].visual == pytest.approx(1, abs=1e-6)
    gallery.remove(["blue/02.jpg"])
    assert paths(opened.search(None, 24, text="sea")) == ["blue/00.jpg", "red/00.jpg"] and gallery.tagged() == 5


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda one: one.search(None, 3, text="gras"), r"no image's tags have a word of 'gras'; did you mean grass\?"),
        (lambda one: one.search(None, 3, text="..."), r"no image's tags have a word of '\.\.\.'$"),
        (lambda one: one.search(None, 3), "a search needs a picture, or a text"),
        (lambda one: one.search(None, 3, text="sea", text_weight=0.5), "a search needs a picture, or a text without"),
        (lambda one: one.search(None, 99, text="sea"), "k is 99, but the index holds 24 images"),
        (lambda one: one.search(None, 3, label="pink", text="sea"), "no image is labelled 'pink'"),
        (lambda one: one.gallery.similar("blue/00.jpg", 3, text_weight=1.5), r"text weight is 1\.5; choose 0, "),
        (lambda one: one.gallery.search(np.zeros((1, 48), np.float32) + 1, 3, text_weight=0.5), "has no text that it"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_answered_is_named(
    opened: Pictures, ask: Callable[..., object], message: str
) -> None:
    with pytest.raises(LookalikeError, match=message) as caught:
        ask(opened)
    assert "\n" not in str(caught.value)


def test_without_tags_a_text_says_what_to_do(tmp_path: Path) -> None:
    built = small_collection.build(tmp_path / "data", each=2)
    gallery = Gallery(built.folder / "index", tmp_path / "changes")
    assert gallery.tagged() == 0 and gallery.similar("blue/00.jpg", 2)[0].text is None
    for ask in (
        lambda: gallery.search(None, 2, text="sea"),
        lambda: gallery.similar("blue/00.jpg", 2, text_weight=0.5),
    ):
        with pytest.raises(LookalikeError, match=r"has no tags, so a text finds nothing; set index\.tags\.file, then"):
            ask()


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
        ("path,text\na/1.png,x\na/9.png,y\n", r"line 3: 'a/9\.png' is no image of the collection; .* as 'a/1\.png'"),
        ("path,text\n./a/1.png,x\n", r"line 2: '\./a/1\.png' is no image of the collection"),
        ("path,text\na/1.png,x\na/2.png,y\na/1.png,z\n", r"line 4: 'a/1\.png' is there already, in line 2; put both"),
        ("path,tags\na/1.png,x\n", r"first line must name the columns path,text; it names \['path', 'tags'\]"),
        ("path;text\na/1.png;x\n", r"must name the columns path,text; it names \['path;text'\]"),
        ("", r"must name the columns path,text; it names \[\]"),
        ("path,text\n", r"none of its 0 lines gives an image a word"),
        ("path,text\na/1.png,\na/2.png,...\n", r"none of its 2 lines gives an image a word"),
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
