"""Words of images: weighed as scikit-learn weighs them, mixed with what the picture looks like, in every face."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from math import log, sqrt
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import small_collection
import yaml
from click.testing import CliRunner, Result
from conftest import NO_TAGS, ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import linear_kernel
from small_collection import Built

from lookalike.api import problems
from lookalike.artifacts.arrays import Collection, save_strings
from lookalike.artifacts.descriptions import Embedding, Network
from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import unit_length
from lookalike.cli import app
from lookalike.collection.collection import Gallery
from lookalike.collection.hits import Hit
from lookalike.collection.picture_search import Pictures
from lookalike.evaluation import measure, tag_fusion
from lookalike.evaluation.protocol import Split
from lookalike.index import build, tags
from lookalike.index.build import Design
from lookalike.index.searcher import Matched, Searcher
from lookalike.index.tags import Tags
from lookalike.refinement.refinement import OFF, Refinement
from lookalike.ui.session import Query
from proof.patience import patience
from stages import evaluate

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


def circle(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def searcher_of(vectors: np.ndarray, **design: Any) -> Searcher:
    refinement = Refinement.fit(vectors, OFF)
    return Searcher(refinement, build.build(vectors, Design(**({"kind": "flat", "storage": "float32"} | design))))


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
    assert found[0].path == "blue/00.jpg"  # where both words are
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
    assert paths(gallery.similar("blue/00.jpg", 23, text_weight=1)) == ["blue/02.jpg", "green/01.jpg", "red/00.jpg"]
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
        (lambda one: one.search(None, 3, text="gras"), r"no tag contains a word of 'gras'; did you mean grass\?"),
        (lambda one: one.search(None, 3, text="..."), r"no tag contains a word of '\.\.\.'$"),
        (lambda one: one.search(None, 3), "a search needs a picture, or a text"),
        (lambda one: one.search(None, 3, text="sea", text_weight=0.5), "a search needs a picture, or a text without"),
        (lambda one: one.search(None, 0, text="sea"), "k is 0, but the index holds 24 images"),
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


def test_among_very_many_words_the_nearest_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = Tags.fit({0: "grass", 1: "sea"}, 0.3)
    monkeypatch.setattr(tags, "HINTED", 2)
    with pytest.raises(LookalikeError, match=r"a word of 'gras'; did you mean grass\?$"):
        fitted.query("gras")
    monkeypatch.setattr(tags, "HINTED", 1)
    with pytest.raises(LookalikeError, match=r"no tag contains a word of 'gras'$"):
        fitted.query("gras")


def test_without_tags_a_text_says_what_to_do(tmp_path: Path) -> None:
    built = small_collection.build(tmp_path / "data", each=2)
    gallery = Gallery(built.folder / "index", tmp_path / "changes")
    assert gallery.tagged() == 0 and gallery.similar("blue/00.jpg", 2)[0].text is None
    for ask in (
        lambda: gallery.search(None, 2, text="sea"),
        lambda: gallery.similar("blue/00.jpg", 2, text_weight=0.5),
    ):
        with pytest.raises(LookalikeError, match=r"has no tags, so a text finds nothing; set index\.tags\.file and"):
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
    assert paths(gallery.search(None, 5, text="shoe red")[0]) == ["03.png", "07.png"]
    (tmp_path / "tags.csv").write_text("path,text\n03.png,red\n77.png,blue\n")
    done = run_stage(tmp_path, changed_params(tmp_path, file=str(tmp_path / "tags.csv")))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"index: error: .*tags\.csv, line 3: '77\.png' is not in the collection", done.stderr)
    assert {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()} == written


# --- measuring ------------------------------------------------------------------------------------------------------


def test_evaluation_ranks_as_a_search_does_and_fits_on_the_gallery_alone() -> None:
    draw = np.random.default_rng(0)
    features = unit_length(draw.standard_normal((70, 6)).astype(np.float32))
    labels, names = np.array(["a", "b"])[draw.integers(0, 2, 70)], np.array([f"{row:02}.png" for row in range(70)])
    texts = {f"{row:02}.png": " ".join(draw.choice(["sea", "sky", "red", "hat"], 2)) for row in range(0, 70, 2)}
    texts["69.png"] = "unheard"  # a query's word that the gallery lacks must not count in idf
    queries, others = np.arange(60, 70), np.arange(60)
    split = Split(queries, others, np.full((10, 1), -1, np.int64), "", ())
    split.exclude[0, 0] = 0
    mix = tag_fusion.mix_words(texts, 0.4, names[queries], names[others])
    refinement = Refinement.fit(features[others], OFF)
    result = measure.evaluate(features, labels, split, refinement, features[others], [1, 5], mix=mix)
    fitted = Tags.fit({row: texts[names[row]] for row in others.tolist() if names[row] in texts}, 0.4)
    searcher = searcher_of(features[others])
    for row, query in enumerate(queries.tolist()):
        words = fitted.weigh(texts.get(str(names[query]), ""))
        if words is None:
            expected = np.argsort(-(features[others] @ features[query]), kind="stable")
        else:
            expected = searcher.fuse(features[query : query + 1], Matched(*fitted.match(words)), 0.4, 60).rows
        expected = expected[expected != split.exclude[row, 0]][:10]
        assert result.rows[row].tolist() == expected.tolist()
    assert tag_fusion.mix_words({"69.png": "x"}, 0.4, names[queries], names[others]) is None


def test_the_stage_measures_tags_that_tell_classes_apart(tmp_path: Path) -> None:
    """By hand: of the images of each query's class, by pictures one comes first and the other last of four."""
    features = circle(0, 10, 80, 90, 2, 88)
    collection = Collection(features, np.array([f"{row}.png" for row in range(6)]), np.array(list("abbaaa")))
    split = Split(np.array([4, 5]), np.arange(4), np.full((2, 1), -1, np.int64), "", ())
    settings = evaluate.Settings(
        k=[1], resamples=100, split_seeds=1, seed=0, memory=16, examples=1, worst=1, map_images=10
    )

    def measured(weight: float, *texts: str) -> dict[str, float]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        told = {row: text for row, text in enumerate(texts) if text}
        if told:
            Tags.fit(told, weight).save(folder, {f"{row}.png": text for row, text in told.items()})
        refinement = Refinement.fit(features[:4], OFF)
        return evaluate.with_tags(folder, collection, split, refinement, features[:4], settings)

    words = ("ant", "bee", "bee", "ant", "ant", "ant")
    pictures_alone = (1 + 2 / 4) / 2
    assert measured(0.9, *words) == {"mAP_tags": pytest.approx(1)}
    assert measured(0.9, *words[:5]) == {"mAP_tags": pytest.approx((1 + pictures_alone) / 2)}  # the last has none
    assert measured(0.9, *words[:4]) == {"mAP_tags": pytest.approx(pictures_alone)}  # no query has any
    assert measured(0.9, "", "", "", "", "ant", "ant") == {}  # no image of the gallery has any
    assert measured(0, *words) == {} == measured(0.9)  # words weigh nothing; there are none


# --- faces ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(built: Built, tmp_path: Path) -> Built:
    """The tagged pictures, in a folder that may be changed."""
    shutil.copytree(built.folder, tmp_path / "data")
    return Built(tmp_path / "data")


def command(built: Built, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, *built.options])


def lines(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_command_searches_by_words(own: Built) -> None:
    red = str(own.picture("red/05.jpg"))
    both = lines(command(own, "search", red, "--text", "fire", "-k", "3"))
    assert both[0].items() >= {"query": red, "path": "red/00.jpg", "rank": 1}.items()
    assert both[0]["cosine"] == pytest.approx(0.7 * both[0]["visual"] + 0.3 * both[0]["text"], abs=1e-6)
    shutil.rmtree(own.folder / "model")  # words need no network
    found = lines(command(own, "search", "--text", "sea sky"))
    assert [hit["path"] for hit in found] == ["blue/02.jpg", "blue/01.jpg", "blue/00.jpg", "red/00.jpg"]
    assert set(found[0]) == {"query", "rank", "path", "label", "cosine", "text"} and found[0]["query"] == "sea sky"
    assert re.match(r" +1 +1\.0000 +blue +blue/01\.jpg", command(own, "search", "--text", "sky", "--table").stdout)
    near = lines(command(own, "similar", "blue/00.jpg", "--text", "fire", "--text-weight", "0.9", "-k", "1"))
    assert near[0]["path"] == "red/00.jpg"
    assert "text" not in lines(command(own, "similar", "blue/00.jpg", "--text-weight", "0", "-k", "1"))[0]
    assert json.loads(command(own, "info").stdout)["tagged"] == 6
    grid = own.folder / "grid.png"
    assert command(own, "search", "--text", "sea", "--grid", str(grid)).exit_code == 0
    with Image.open(grid) as drawn:
        assert drawn.width > 400


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["search"], 2, "Missing argument 'PICTURES...', or option '--text'"),
        (["search", "--text", "see"], 1, "no tag contains a word of 'see'; did you mean sea?"),
        (["search", "--text", "sea", "--text-weight", "0.5"], 1, "a text without a weight"),
        (["similar", "blue/00.jpg", "--text-weight", "2"], 2, "2.0 is not in the range 0<=x<=1"),
    ],
)
def test_a_mistake_at_the_command_is_a_line(built: Built, arguments: list[str], status: int, message: str) -> None:
    done = command(built, *arguments)
    assert done.exit_code == status and message in done.output and "Traceback" not in done.output


@pytest.mark.slow
def test_a_search_by_words_imports_neither_scikit_learn_nor_openvino(own: Built) -> None:
    line = [sys.executable, "-X", "importtime", "-m", "lookalike.cli", "search", "--text", "sea", *own.options]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True, timeout=patience(120))
    loaded = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "faiss" in loaded and not loaded & {"sklearn", "scipy", "openvino", "tensorflow"}
    assert len(done.stdout.splitlines()) == 3


@pytest.fixture
def client(own: Built) -> Iterator[httpx.Client]:
    """Asks a server of the pictures."""
    line = [sys.executable, "-m", "lookalike.cli", "serve", "--port=0", "--no-log", *own.options]
    with subprocess.Popen(line, cwd=own.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
                          text=True) as process:  # fmt: skip
        heard = ""
        while not (found := re.search(r"serving on (http://\S+)", heard)):
            heard += process.stderr.readline()
            assert process.poll() is None, heard
        with httpx.Client(base_url=found[1], timeout=patience(60)) as asking:
            while asking.get("/ready").status_code != 200:
                time.sleep(0.05)
            yield asking
        process.terminate()


@pytest.mark.slow
def test_the_server_searches_by_words(own: Built, client: httpx.Client) -> None:
    found = client.post("/search", params={"text": "sea", "k": 2}).json()["hits"]
    assert [hit["path"] for hit in found] == ["blue/02.jpg", "blue/00.jpg"] and "visual" not in found[0]
    picture = {"file": own.picture("red/05.jpg").read_bytes()}
    for sent in ({"files": picture}, {"content": picture["file"], "headers": {"content-type": "image/jpeg"}}):
        hits = client.post("/search", params={"text": "fire", "text_weight": 0.5}, **sent).json()["hits"]
        assert hits[0]["path"] == "red/00.jpg" and len(hits) == 10
        assert hits[0]["cosine"] == pytest.approx((hits[0]["visual"] + hits[0]["text"]) / 2, abs=1e-6)
    assert set(client.post("/search", files=picture).json()["hits"][0]) == {"rank", "id", "path", "label", "cosine"}
    item = found[1]["id"]
    near = client.get(f"/items/{item}/similar", params={"text_weight": 1}).json()["hits"]
    assert [hit["path"] for hit in near] == ["blue/02.jpg", "green/01.jpg", "red/00.jpg"]
    beside = client.get(f"/items/{item}/similar", params={"text": "fire", "text_weight": 0.9}).json()["hits"]
    assert beside[0]["path"] == "red/00.jpg"
    for parameters, detail in (
        ({"text": "see"}, "no tag contains a word of 'see'; did you mean sea?"),
        ({"text": "sea", "text_weight": 0.5}, "a text without a weight"),
        ({"text": ""}, "text"), ({"text": "sea", "text_weight": 2}, "text_weight"),
        ({"text": "sea", "k": 1001}, "k: input should be less than or equal to 1000"),
    ):  # fmt: skip
        answer = client.post("/search", params=parameters)
        assert answer.status_code == 422 and answer.json()["type"] == problems.INVALID.type, parameters
        assert detail in answer.json()["detail"]
    assert (
        client.post("/search", params={"text_weight": 0.5}, files=picture)
        .json()["detail"]
        .startswith("text weight 0.5 has")
    )
    assert client.post("/search").json()["type"] == problems.NO_PICTURE.type


@pytest.mark.slow
def test_the_page_asks_for_words_where_there_are_any(
    own: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamlit = pytest.importorskip("streamlit", reason="Streamlit is not installed")
    from streamlit.testing.v1 import AppTest

    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # AppTest puts its script there
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    streamlit.cache_resource.clear()
    shown = AppTest.from_file(str(ROOT / "lookalike/ui/app.py"), default_timeout=patience(60)).run()
    assert shown.slider(key="weight").value == 0.3

    def written(kind: str) -> str:
        return "\n".join(each.value for each in shown.get(kind))

    shown.text_input(key="words").set_value("sea").run()
    assert not shown.exception and "Or start from one of these" not in written("subheader")
    shown.select_slider(key="least").set_value("0.99").run()
    assert re.search(r"Nothing is at least 0\.99 similar; the most similar image reaches 0\.\d\d", written("info"))
    shown.session_state["trail"] = [Query("red/00.jpg")]
    shown.slider(key="weight").set_value(1.0).run()
    assert not shown.exception and "reaches 0." in written("info")
    shown.text_input(key="words").set_value("see").run()
    assert "did you mean sea?" in written("warning")
    streamlit.cache_resource.clear()
    small_collection.build(own.folder)
    without = AppTest.from_file(str(ROOT / "lookalike/ui/app.py"), default_timeout=patience(60)).run()
    assert not without.exception and "words" not in {each.key for each in without.text_input}


def test_a_bundle_brings_words_along_and_fold_takes_lines_of_removed_images_out(own: Built, tmp_path: Path) -> None:
    served = tmp_path / "served"
    assert command(own, "bundle", str(served)).exit_code == 0
    where = ["--index", str(served / "index"), "--model", str(served / "model")]
    assert len(lines(CliRunner().invoke(app, ["search", "--text", "sea", *where]))) == 3
    table = tmp_path / "tags.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "text", "by"), *((path, text, "me") for path, text in TEXTS.items())])
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["download"].update(dataset="folder", folder=str(own.folder / "raw"))
    content["index"]["tags"]["file"] = str(table)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    assert command(own, "remove", "blue/02.jpg", "red/07.jpg").exit_code == 0
    done = command(own, "fold", "--params", str(tmp_path / "params.yaml"))
    assert done.exit_code == 0 and "2 taken out" in done.stderr
    left = tags.read(table, np.array(sorted({*TEXTS} - {"blue/02.jpg"})))
    assert list(left.values()) == [text for path, text in sorted(TEXTS.items()) if path != "blue/02.jpg"]
    assert table.read_text().splitlines()[1] == 'blue/00.jpg,"deep sea, water",me'
