"""The browser page's rules, without a browser."""

import json
import os
import shutil
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lookalike.artifacts.descriptions import load_embedding
from lookalike.base.errors import LookalikeError
from lookalike.collection.collection import Gallery
from lookalike.collection.query import Query
from lookalike.ui.launch import MAX_MEGABYTES, how
from tests.helpers import small_collection
from tests.helpers.import_graph import ROOT
from tests.helpers.pictures import png
from tests.helpers.small_collection import Built

pytestmark = pytest.mark.slow  # a server and a browser

streamlit = pytest.importorskip("streamlit", reason="Streamlit is not installed: pip install -r requirements/serve.txt")

from streamlit.testing.v1 import AppTest  # noqa: E402  # after it is known to be there

from lookalike.ui import session  # noqa: E402
from lookalike.ui import tiles as ui_tiles  # noqa: E402
from lookalike.ui.session import Start, start_from  # noqa: E402
from proof.patience import patience  # noqa: E402

APP = ROOT / "lookalike/ui/app.py"
HITS, OFFERED, WAY = "Most similar first", "Images of the collection", "The way here"


@pytest.fixture(autouse=True)
def own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit's AppTest puts its script in the place of `__main__`, which a process spawned later would run."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(sys, "argv", ["app.py"])  # not pytest's, which the page would read


@pytest.fixture(autouse=True)
def nothing_is_open() -> None:
    streamlit.cache_resource.clear()


def page() -> AppTest:
    shown = AppTest.from_file(str(APP), default_timeout=patience(60)).run()
    assert not shown.exception
    return shown


def words(shown: AppTest) -> str:
    """Everything that is written on the page."""
    kinds = ("header", "subheader", "caption", "markdown", "info", "warning", "error", "code")
    return "\n".join(each.value for kind in kinds for each in shown.get(kind))


def test_the_first_look_offers_images(built: Built) -> None:
    shown = page()
    assert "24 images in 3 classes, compared by Squares" in words(shown)
    assert "Or start from one of these" in words(shown)
    assert [slider.max for slider in shown.slider] == [23]


def offered(shown: AppTest) -> list[str]:
    """The images that are shown to start from."""
    data = [json.loads(each.proto.mixed.json or each.proto.json) for each in shown.get("bidi_component")]
    return next([tile["id"] for tile in each["tiles"]] for each in data if each.get("label") == OFFERED)


def test_other_images_are_offered_when_asked_for(built: Built) -> None:
    shown = page()
    before = offered(shown)
    after = offered(shown.button(key="picks_others").click().run())
    assert len(set(before)) == len(set(after)) == 12
    assert set(before) != set(after)
    assert offered(page()) == before  # the same lot for everybody's first visit


def test_a_photograph_is_searched_with_and_can_be_taken_back(built: Built) -> None:
    shown = page()
    shown.button_group(key="source").set_value("Camera").run()
    photo = BytesIO()
    small_collection.coloured("red", 999).save(photo, "JPEG")
    shown.camera_input(key="camera").upload("photo.jpg", photo.getvalue()).run()
    assert not shown.exception
    assert [query.content for query in shown.session_state["trail"]] == [photo.getvalue()]
    assert "Or start from" not in words(shown)
    shown.camera_input(key="camera").set_value(None).run()
    assert "Or start from one of these" in words(shown)


def test_without_classes_none_is_asked_for(built: Built) -> None:
    gallery = Gallery(built.folder / "index", built.folder / "changes")
    vectors = gallery.state.searcher.index.vectors(np.arange(24))
    features = {f"{row:02}.jpg": vector for row, vector in enumerate(vectors)}
    small_collection.write_index(built.folder / "index", features, load_embedding(built.folder / "index"))
    shown = page()
    assert "24 images, compared by Squares" in words(shown)
    assert not shown.selectbox
    shown.session_state["trail"] = [Start("03.jpg")]
    shown.run()
    assert not shown.exception and "Or start from" not in words(shown)


@pytest.mark.parametrize(
    ("answer", "taken"),
    [("aGVsbG8=", [b"hello"]), ("no base64!", [b""]), ("é", [b""]), (None, []), (7, []), ({"a": "b"}, [])],
)
def test_what_a_browser_sends_as_a_picture_is_checked(
    monkeypatch: pytest.MonkeyPatch, answer: object, taken: list[bytes]
) -> None:
    """A picture is base64; b"" is then refused as an empty file, and what is no text is as if nothing had come."""
    drawn, pasted = {}, []
    monkeypatch.setattr(ui_tiles, "_paste", lambda **given: drawn.update(given))
    monkeypatch.setattr(streamlit, "session_state", {"paste": SimpleNamespace(pasted=answer)})
    ui_tiles.paste("paste", 1000, pasted.append)
    drawn["on_pasted_change"]()
    assert pasted == taken


@pytest.mark.parametrize(("answer", "taken"), [("red/03.jpg", ["red/03.jpg"]), (None, []), (["red/03.jpg"], [])])
def test_what_a_browser_sends_as_a_click_is_checked(
    monkeypatch: pytest.MonkeyPatch, answer: object, taken: list[str]
) -> None:
    drawn, picked = {}, []
    monkeypatch.setattr(ui_tiles, "_tiles", lambda **given: drawn.update(given))
    monkeypatch.setattr(streamlit, "session_state", {"hits": SimpleNamespace(picked=answer)})
    ui_tiles.show("hits", [], HITS, picked.append)
    drawn["on_picked_change"]()
    assert picked == taken


def test_an_answer_is_shown_and_can_be_narrowed(built: Built) -> None:
    shown = page()
    shown.session_state["trail"] = [Start("red/03.jpg")]
    shown.run()
    assert "Or start from" not in words(shown)
    shown.select_slider(key="least").set_value("0.99").run()
    shown.selectbox(key="class").set_value("green").run()
    assert "Nothing is at least 0.99 similar; the most similar image reaches 0." in words(shown)
    shown.select_slider(key="least").set_value("any").run()
    assert "Nothing is at least" not in words(shown)


def test_without_an_index_it_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = page()
    assert "There is nothing to search yet" in words(shown)
    assert "dvc repro" in words(shown)
    built = small_collection.build(tmp_path / "data")  # and then it is there
    shown.button[0].click().run()
    assert f"{len(list(built.folder.rglob('*.jpg')))} images" in words(shown)


def test_an_index_that_was_tampered_with_is_not_opened(built: Built) -> None:
    with (built.folder / "index/index.faiss").open("ab") as file:
        file.write(b"!")
    assert "so it was not opened" in words(page())


def test_a_rebuilt_index_is_opened_anew(built: Built) -> None:
    shown = page()
    shown.session_state["trail"] = [Start("red/03.jpg")]
    shown.run()
    small_collection.build(built.folder, each=9)
    shown.run()
    assert not shown.exception
    assert "27 images" in words(shown)
    assert "rebuilt meanwhile" in shown.toast[0].value


def test_an_index_rebuilt_while_the_answer_is_looked_for_is_opened_anew(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = page()
    real = session.Opened.answer

    def late(*given: Any) -> session.Answer:
        monkeypatch.setattr(session.Opened, "answer", real)
        small_collection.build(built.folder, each=9)
        return real(*given)

    monkeypatch.setattr(session.Opened, "answer", late)
    shown.session_state["trail"] = [Start("red/03.jpg")]
    shown.run()
    assert not shown.exception
    assert "27 images" in words(shown) and "Or start from" not in words(shown)
    assert "rebuilt meanwhile" in shown.toast[0].value


def test_an_image_that_was_removed_meanwhile_is_no_dead_end(built: Built) -> None:
    shown = page()
    shown.session_state["trail"] = [Start("red/03.jpg")]
    shown.run()
    Gallery(built.folder / "index", built.folder / "changes").remove(["red/03.jpg"])
    shown.run()
    assert "red/03.jpg is not in the collection" in words(shown)
    shown.button[0].click().run()
    assert "Or start from one of these" in words(shown)


def test_the_last_image_is_alone(built: Built) -> None:
    gallery = Gallery(built.folder / "index", built.folder / "changes")
    paths = [f"{label}/{number:02}.jpg" for label in small_collection.CLASSES for number in range(8)]
    gallery.remove(paths[:-1])
    shown = page()
    shown.session_state["trail"] = [Start(paths[-1])]
    shown.run()
    assert "only image of the collection" in words(shown)
    gallery.remove(paths[-1:])
    shown.run()
    assert not shown.exception
    assert "The collection is empty" in words(shown)


def test_without_pictures_names_do(built: Built) -> None:
    shutil.rmtree(built.folder / "raw")
    shown = page()
    shown.session_state["trail"] = [Start("red/03.jpg")]
    shown.run()
    assert "so names must do. Make them: `dvc repro download`" in words(shown)


def test_what_no_picture_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookalikeError, match="not an image in a known format"):
        start_from(b"<svg onload=alert(1)>")
    with pytest.raises(LookalikeError, match="is empty"):
        start_from(b"")
    with pytest.raises(LookalikeError, match=f"17 MB; {MAX_MEGABYTES} MB is the limit"):
        start_from(bytes(17 << 20))
    monkeypatch.setattr(session, "MAX_PIXELS", 100)
    content = small_collection.picture(0)
    with pytest.raises(LookalikeError, match="more than max_pixels = 100"):
        start_from(png(content))


def test_a_picture_is_embedded_once(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {*threading.enumerate()}
    opened = session.Opened(session.Places(*(built.folder / name for name in (
        "index", "model", "changes", "raw", "metrics", "plots"))))  # fmt: skip
    for loading in {*threading.enumerate()} - before:  # the network
        loading.join()
    calls = []
    embed = opened.pictures.embed
    monkeypatch.setattr(opened.pictures, "embed", lambda content: calls.append(1) or embed(content))
    query = start_from(png(small_collection.coloured("blue", 5)))
    answers = [opened.answer(query, Query(k, -1, None)) for k in (3, 5)]
    assert len(calls) == 1
    assert [len(answer.hits) for answer in answers] == [3, 5]
    assert {hit.label for hit in answers[0].hits} == {"blue"}
    assert answers[0].hits == Gallery(built.folder / "index", built.folder / "changes").search(
        embed(query.content)[np.newaxis], Query(3))[0]  # fmt: skip


def test_so_many_embeddings_are_kept_and_the_last_used_ones(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "REMEMBERED", 2)
    opened = session.Opened(session.Places(*(built.folder / name for name in (
        "index", "model", "changes", "raw", "metrics", "plots"))))  # fmt: skip
    calls: list[bytes] = []
    monkeypatch.setattr(opened.pictures, "embed", lambda content: calls.append(content) or np.ones(48, np.float32))
    a, b, c = (start_from(png(small_collection.coloured("blue", seed))) for seed in range(3))
    for query in (a, b, a, c, a, b):  # c takes the place of b, which was asked for longer ago than a
        opened.answer(query, Query(3, -1, None))
    asked = {a.content: "a", b.content: "b", c.content: "c"}
    assert [asked[content] for content in calls if content in asked] == ["a", "b", "c", "b"]


def test_the_weight_is_that_of_an_images_own_words_when_none_are_typed(built: Built) -> None:
    small_collection.build(built.folder, texts={"red/03.jpg": "sea", "blue/00.jpg": "sea"})
    opened = session.Opened(session.Places(*(built.folder / name for name in (
        "index", "model", "changes", "raw", "metrics", "plots"))))  # fmt: skip
    alone, mixed = (opened.answer(Start("red/03.jpg"), Query(3, -1, None, None, weight)).hits for weight in (0.0, 1.0))
    assert {hit.label for hit in alone} == {"red"}
    assert [hit.path for hit in mixed] == ["blue/00.jpg"]


def test_images_are_found_by_class_and_name(built: Built) -> None:
    gallery = Gallery(built.folder / "index", built.folder / "changes")
    gallery.remove(["red/03.jpg"])
    found = [gallery.state.path_and_label(row)[0] for row in gallery.state.find("red", "D/0").tolist()]
    assert found == [f"red/{number:02}.jpg" for number in (0, 1, 2, 4, 5, 6, 7)]
    assert len(gallery.state.find()) == 23
    assert not len(gallery.state.find(text="%"))


def test_the_figures_are_shown(built: Built, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "plots", tmp_path / "plots")
    shutil.copytree(ROOT / "metrics", tmp_path / "metrics")
    shown = _quality()
    measured = json.loads((ROOT / "metrics/metrics.json").read_text())
    cards = "".join(each.proto.body for each in shown.get("html"))
    assert f"<b>{measured['mAP']:.3f}</b>" in cards
    assert "This was measured with 1,797 images, but 24 are indexed" in words(shown)
    assert len(shown.image) == 5
    timed = {"brute_force": {"p50_ms": 400.0}, "flat": {"p50_ms": 30.0}, "hnsw": {"p50_ms": 0.5}, "queries": 3}
    (tmp_path / "metrics/latency.json").write_text(json.dumps([timed]))
    assert "a query takes 0.50 ms, brute force 400.00 ms" in words(_quality())
    (tmp_path / "metrics/latency.json").write_text(
        json.dumps([timed | {"hnsw": {"p50_ms": None}, "flat": {"p50_ms": None}}])
    )
    assert "Speed:" not in words(_quality())


def _quality() -> AppTest:
    """The second page, as AppTest can draw it: pages that are functions have no file to switch to."""

    def script() -> None:
        from pathlib import Path

        from lookalike.ui import quality_page
        from lookalike.ui.session import Opened, Places

        names = ("data/index", "data/model", "data/changes", "data/raw", "metrics", "plots")
        quality_page.show(Opened(Places(*map(Path, names))))

    shown = AppTest.from_function(script, default_timeout=patience(60)).run()
    assert not shown.exception
    return shown


def test_without_figures_it_says_how_to_measure(built: Built) -> None:
    assert "dvc repro evaluate" in words(_quality())


def test_what_cannot_be_measured_says_why(built: Built) -> None:
    Path("metrics").mkdir()
    reason = "no image has a label"
    Path("metrics/metrics.json").write_text(json.dumps({"queries": 0, "gallery": 24, "unmeasurable": reason}))
    assert f"Quality cannot be measured: {reason}. The search works all the same." in words(_quality())


@pytest.mark.parametrize("table", [None, b"", b"one,two\n1,2\n", b"\xff\xfe"])
def test_figures_without_their_table_are_shown_without_intervals(built: Built, table: bytes | None) -> None:
    """Of the collection that is open, so without a warning: each image is a query, and in the gallery of the others."""
    for folder in ("metrics", "plots"):
        Path(folder).mkdir()
    Path("metrics/metrics.json").write_text(json.dumps({"queries": 24, "gallery": 24, "images": 24, "mAP": 0.5}))
    if table is not None:
        Path("plots/figures.csv").write_bytes(table)
    shown = _quality()
    assert "24 queries were searched among 24 images, none of them itself" in words(shown)
    assert "<b>0.500</b><span></span>" in "".join(each.proto.body for each in shown.get("html"))
    assert not shown.warning and not shown.expander


def test_it_is_shut_and_silent_by_default() -> None:
    command, environment = how(8501, "127.0.0.1", {"index": Path("x/index"), "images": None})
    assert "--browser.gatherUsageStats=false" in command
    assert "--server.address=127.0.0.1" in command
    assert "--server.allowedHosts=localhost" in command
    assert f"--server.maxUploadSize={MAX_MEGABYTES}" in command
    assert command[command.index("--") :] == ["--", "--index=x/index"]
    assert str(ROOT) in environment["PYTHONPATH"]
    open_to_all, _ = how(8501, "0.0.0.0", {})
    assert not any("allowedHosts" in part for part in open_to_all)  # by which name others come is theirs to say
    assert any("browser.serverAddress" in part for part in open_to_all)  # else it is asked for on the internet
    assert "--server.allowedHosts=localhost" in how(8501, "localhost", {})[0]
    named, _ = how(8501, "pictures.example", {})
    assert "--server.address=pictures.example" in named
    assert not any("allowedHosts" in part or "serverAddress" in part for part in named)


def test_without_streamlit_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "streamlit", None)
    done = small_collection.run("ui")
    assert done.exit_code == 1
    assert str(done.exception).endswith("Streamlit is not installed: pip install -r requirements/serve.txt")


def test_a_process_that_ends_while_the_network_is_being_loaded_ends_well(built: Built) -> None:
    """One in three of them aborted, at these moments. Streamlit runs a page in a daemon thread."""
    code = (
        "import sys, threading, time; from pathlib import Path; from lookalike.ui.session import *\n"
        "places = Places(*map(Path, ('data/index', 'data/model', 'data/changes', 'data/raw', 'm', 'p')))\n"
        "page = threading.Thread(target=Opened, args=[places], daemon=True)\n"
        "page.start(); page.join(); time.sleep(float(sys.argv[1]))"
    )
    for moment in range(8):
        command = [sys.executable, "-c", code, str(moment * 0.04)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_search_needs_no_tensorflow(built: Built) -> None:
    code = (
        "import sys; from pathlib import Path; from lookalike.ui.session import *\n"
        "opened = Opened(Places(*map(Path, ('data/index', 'data/model', 'data/changes', 'data/raw', 'm', 'p'))))\n"
        "content = Path('data/raw/red/00.jpg').read_bytes()\n"
        "assert opened.answer(start_from(content), Query(3)).hits\n"
        "import lookalike.ui.search_page, lookalike.ui.quality_page\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
