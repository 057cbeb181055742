"""A search by words, alone or beside a picture: in the library and in every face."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from lookalike.api import problems
from lookalike.base.errors import LookalikeError
from lookalike.cli import app
from lookalike.collection.collection import Gallery
from lookalike.collection.picture_search import Pictures
from lookalike.collection.query import Query
from lookalike.index import tags
from lookalike.index.tags import Tags
from lookalike.ui.session import Start
from proof.patience import patience
from tests.helpers import small_collection
from tests.helpers.project import ROOT
from tests.helpers.small_collection import Built
from tests.helpers.tagged_vectors import paths

TEXTS = {
    "blue/00.jpg": "deep sea, water", "blue/01.jpg": "sky", "blue/02.jpg": "sea sky sea",
    "green/00.jpg": "grass", "green/01.jpg": "grass, deep forest", "red/00.jpg": "fire at sea",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """24 pictures in three colours, six of them with words."""
    return small_collection.build(tmp_path_factory.mktemp("tagged") / "data", texts=TEXTS)


@pytest.fixture
def opened(built: Built, tmp_path: Path) -> Pictures:
    return Pictures(built.folder / "index", built.folder / "model", tmp_path / "changes")


# --- a gallery ------------------------------------------------------------------------------------------------------


def test_weight_0_is_the_picture_alone_and_1_the_words_alone(built: Built, opened: Pictures) -> None:
    content = built.picture("red/05.jpg").read_bytes()
    assert opened.search(content, Query(24, text="sea", text_weight=0)) == opened.search(content, Query(24))
    words = opened.search(None, Query(24, text="sea"))
    assert paths(words) == ["blue/02.jpg", "blue/00.jpg", "red/00.jpg"]  # beside rarer words "sea" counts less
    assert [(hit.rank, hit.visual, hit.text == hit.cosine) for hit in words] == [(n, None, True) for n in (1, 2, 3)]
    both = opened.search(content, Query(24, text="sea", text_weight=1))
    assert [(hit.path, hit.cosine) for hit in both] == [(hit.path, hit.cosine) for hit in words]


def test_words_and_picture_are_mixed_by_the_indexs_weight(built: Built, opened: Pictures) -> None:
    content = built.picture("red/05.jpg").read_bytes()
    alone = {hit.path: hit.cosine for hit in opened.search(content, Query(24))}
    words = {hit.path: hit.cosine for hit in opened.search(None, Query(24, text="deep sea"))}
    found = opened.search(content, Query(24, text="deep sea"))
    for hit in found:
        assert hit.visual == pytest.approx(alone[hit.path], abs=1e-6) and hit.text == words.get(hit.path, 0)
        assert hit.cosine == pytest.approx(0.7 * hit.visual + 0.3 * hit.text, abs=1e-6)
    assert [hit.rank for hit in found] == list(range(1, 25))
    assert found == sorted(found, key=lambda hit: -hit.cosine)
    assert found[0].path == "blue/00.jpg"  # where both words are
    least = [hit for hit in found if hit.cosine >= 0.6]
    assert 0 < len(least) < 24 and opened.search(content, Query(24, 0.6, text="deep sea")) == least
    blue = [hit for hit in found if hit.label == "blue"]
    assert paths(opened.search(content, Query(24, label="blue", text="deep sea"))) == paths(blue)
    assert paths(opened.search(None, Query(24, label="blue", text="sea"))) == ["blue/02.jpg", "blue/00.jpg"]


def test_an_image_of_the_collection_brings_its_own_words(opened: Pictures) -> None:
    gallery = opened.gallery
    hits = gallery.similar("blue/00.jpg", Query(23))
    assert "blue/00.jpg" not in paths(hits) and len(hits) == 23
    assert {hit.path for hit in hits if hit.text} == {"blue/02.jpg", "green/01.jpg", "red/00.jpg"}
    assert gallery.similar("blue/00.jpg", Query(23, text_weight=0))[0].text is None
    assert paths(gallery.similar("blue/00.jpg", Query(23, text_weight=1))) == [
        "blue/02.jpg",
        "green/01.jpg",
        "red/00.jpg",
    ]
    assert gallery.similar("blue/07.jpg", Query(5)) == gallery.similar(
        "blue/07.jpg", Query(5, text_weight=0.9)
    )  # it has none


def test_words_belong_to_a_path(built: Built, opened: Pictures) -> None:
    gallery, content = opened.gallery, built.picture("green/07.jpg").read_bytes()
    assert gallery.tagged() == 6
    opened.add("blue/new.jpg", "blue", content)
    assert "blue/new.jpg" not in paths(opened.search(None, Query(24, text="sea sky grass")))
    assert opened.search(content, Query(1, text="sea", text_weight=0.01))[0].text == 0
    opened.add("blue/02.jpg", "blue", content, replace=True)
    found = opened.search(None, Query(24, text="sea"))
    assert paths(found)[0] == "blue/02.jpg" and gallery.tagged() == 6
    both = opened.search(content, Query(24, text="sea"))
    assert both[0].path == "blue/02.jpg" and both[0].visual == pytest.approx(1, abs=1e-6)
    gallery.remove(["blue/02.jpg"])
    assert paths(opened.search(None, Query(24, text="sea"))) == ["blue/00.jpg", "red/00.jpg"] and gallery.tagged() == 5


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda one: one.search(None, Query(3, text="gras")),
            r"no tag contains a word of 'gras'; did you mean grass\?",
        ),
        (lambda one: one.search(None, Query(3, text="...")), r"no tag contains a word of '\.\.\.'$"),
        (lambda one: one.search(None, Query(3)), "a search needs a picture, or a text"),
        (
            lambda one: one.search(None, Query(3, text="sea", text_weight=0.5)),
            "a search needs a picture, or a text without",
        ),
        (lambda one: one.search(None, Query(0, text="sea")), "k is 0, but the index holds 24 images"),
        (lambda one: one.search(None, Query(3, label="pink", text="sea")), "no image is labelled 'pink'"),
        (lambda one: one.gallery.similar("blue/00.jpg", Query(3, text_weight=1.5)), r"text weight is 1\.5; choose 0, "),
        (
            lambda one: one.gallery.search(np.zeros((1, 48), np.float32) + 1, Query(3, text_weight=0.5)),
            "has no text that it",
        ),
    ],
)
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
    assert gallery.tagged() == 0 and gallery.similar("blue/00.jpg", Query(2))[0].text is None
    for ask in (
        lambda: gallery.search(None, Query(2, text="sea")),
        lambda: gallery.similar("blue/00.jpg", Query(2, text_weight=0.5)),
    ):
        with pytest.raises(LookalikeError, match=r"has no tags, so a text finds nothing; set index\.tags\.file and"):
            ask()


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
    shown.session_state["trail"] = [Start("red/00.jpg")]
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
