"""The browser page in a real Chromium that uploads, clicks, types and holds a phone."""

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lookalike.ui.launch import MAX_MEGABYTES
from tests.helpers import small_collection
from tests.helpers.import_graph import ROOT
from tests.helpers.pictures import png

pytestmark = pytest.mark.slow  # a server and a browser

streamlit = pytest.importorskip("streamlit", reason="Streamlit is not installed: pip install -r requirements/serve.txt")


from proof.patience import patience  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
HITS, OFFERED, WAY = "Most similar first", "Images of the collection", "The way here"


@pytest.fixture(scope="module")
def served(small_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served by the command; its address."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(small_template, folder / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "LOOKALIKE_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "lookalike.cli", "ui", "--port", str(port)], cwd=folder,
                                   env=environment, stdout=log, stderr=log)  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + patience(120)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            assert process.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/_stcore/health")
                break
            except OSError:
                continue
        yield address
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(patience(60))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def tab(browser: Any, served: str) -> Iterator[Any]:
    """The page in a window of its own; afterwards nothing was fetched from elsewhere and nothing went wrong in it."""
    yield from _open(browser, served, {"width": 1280, "height": 900})


@pytest.fixture
def phone(browser: Any, served: str) -> Iterator[Any]:
    yield from _open(browser, served, {"width": 375, "height": 812}, has_touch=True, is_mobile=True)


def _open(browser: Any, served: str, viewport: dict[str, int], **options: Any) -> Iterator[Any]:
    context = browser.new_context(viewport=viewport, **options)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=served)
    tab = context.new_page()
    tab.set_default_timeout(1000 * patience(60))
    elsewhere, wrong = [], []
    tab.on("request", lambda request: elsewhere.append(request.url) if not request.url.startswith(
        (served, served.replace("http", "ws"), "data:", "blob:")) else None)  # fmt: skip
    tab.on("pageerror", lambda error: wrong.append(error))  # it takes no bound method of a list
    tab.goto(served)
    tiles(tab, OFFERED).first.wait_for()
    yield tab
    context.close()
    assert not elsewhere
    assert not wrong


def tiles(tab: Any, name: str) -> Any:
    return tab.get_by_role("list", name=name, exact=True).get_by_role("button")


def settle(tab: Any, name: str, count: int) -> None:
    """Wait until so many pictures are shown."""
    tiles(tab, name).nth(count - 1).wait_for()
    wait_until(tab, lambda: tiles(tab, name).count() == count)


def wait_until(tab: Any, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + patience(60)
    while not condition():
        assert time.monotonic() < deadline, tab.inner_text("body")
        tab.wait_for_timeout(20)


def upload(tab: Any, name: str, content: bytes) -> None:
    tab.locator("input[type=file]").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})


def test_upload_three_clicks_and_back(tab: Any) -> None:
    upload(tab, "../../../etc/passwd.png", png(small_collection.coloured("red", 999)))
    settle(tab, HITS, 10)
    assert "red" in tiles(tab, HITS).first.inner_text()
    assert tab.get_by_text("images like yours, embedded in").count() == 1
    assert tiles(tab, HITS).first.locator("img").get_attribute("alt").startswith("red/")
    for steps in (2, 3, 4):
        tiles(tab, HITS).nth(1).click()
        settle(tab, WAY, steps)
    path = tiles(tab, WAY).nth(3).get_attribute("title")
    tab.get_by_text(f"10 of 24 images like {path}").wait_for()
    assert tab.get_by_text(", same class").count() == 7  # the other red ones
    assert tiles(tab, WAY).nth(3).get_attribute("aria-current") == "true"
    tiles(tab, WAY).nth(1).click()
    settle(tab, WAY, 2)
    tiles(tab, WAY).first.click()
    settle(tab, WAY, 1)
    tab.get_by_text("images like yours").wait_for()


def test_k_threshold_and_class(tab: Any) -> None:
    tiles(tab, OFFERED).first.click()
    settle(tab, HITS, 10)
    first = tiles(tab, HITS).first.inner_text()
    tab.get_by_role("slider", name="Images to show").focus()
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    settle(tab, HITS, 13)
    assert tiles(tab, HITS).first.inner_text() == first
    label = first.split("\n")[-1].strip()
    other = next(name for name in small_collection.CLASSES if name != label)
    tab.get_by_role("combobox", name="Only of the class").click()
    tab.get_by_role("option", name=other).click()
    settle(tab, HITS, 8)
    assert all(other in text for text in tiles(tab, HITS).all_inner_texts())
    least = tab.get_by_role("slider", name="At least this similar")
    least.focus()
    tab.keyboard.press("End")
    tab.get_by_text("Nothing is at least 0.99 similar").wait_for()


def test_what_cannot_be_read_says_why_and_the_next_picture_works(tab: Any) -> None:
    upload(tab, "holiday.png", b"\x89PNG\r\n\x1a\nnot a picture")
    tab.get_by_text("This file cannot be searched with").wait_for()
    assert tiles(tab, OFFERED).count() == 12  # still there
    upload(tab, "huge.png", bytes((MAX_MEGABYTES << 20) + 1))
    tab.get_by_text(f"must be {MAX_MEGABYTES}").first.wait_for()
    upload(tab, "good.png", png(small_collection.coloured("blue", 999)))
    settle(tab, HITS, 10)
    assert tab.get_by_text("This file cannot be searched with").count() == 0


def test_a_picture_is_pasted(tab: Any) -> None:
    content = base64.b64encode(png(small_collection.coloured("green", 999))).decode()
    tab.evaluate("""async content => {
        const blob = await (await fetch("data:image/png;base64," + content)).blob();
        await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
    }""", content)  # fmt: skip
    tab.get_by_role("button", name="Paste a picture").click()
    settle(tab, HITS, 10)
    assert "green" in tiles(tab, HITS).first.inner_text()
    tiles(tab, HITS).first.click()
    settle(tab, WAY, 2)
    tab.keyboard.press("Control+v")  # anywhere on the page
    settle(tab, WAY, 1)


def test_browse_the_collection(tab: Any) -> None:
    tab.get_by_role("radio", name="Collection").or_(tab.get_by_text("Collection", exact=True)).first.click()
    tab.get_by_role("textbox", name="With this in its name").fill("RED/0")
    tab.keyboard.press("Enter")
    tab.get_by_text("8 of 8 images").wait_for()
    tab.get_by_role("textbox", name="With this in its name").fill("<b>no such</b>")
    tab.keyboard.press("Enter")
    tab.get_by_text("No image is called so").wait_for()
    tab.get_by_role("textbox", name="With this in its name").fill("red/03")
    tab.keyboard.press("Enter")
    tab.get_by_text("1 of 1 images").wait_for()
    tab.get_by_role("list", name=OFFERED).first.get_by_role("button").click()
    settle(tab, HITS, 10)
    tab.get_by_text("images like red/03.jpg").wait_for()


def test_with_the_keyboard_alone(tab: Any) -> None:
    for _ in range(40):
        tab.keyboard.press("Tab")
        if _focused(tab).startswith("BUTTON:red/"):
            break
    else:
        raise AssertionError("no picture is reached in 40 steps")
    tab.keyboard.press("Enter")
    settle(tab, HITS, 10)
    tiles(tab, HITS).nth(2).focus()
    before = _focused(tab)
    tab.keyboard.press("Space")
    settle(tab, WAY, 2)
    tab.get_by_text(f"images like {before.split(':')[1]}").wait_for()
    assert _focused(tab).startswith("BUTTON:")  # and does not start at the top again


def _focused(tab: Any) -> str:
    return tab.evaluate("""() => {
        let found = document.activeElement;
        while (found.shadowRoot?.activeElement) found = found.shadowRoot.activeElement;
        return found.tagName + ":" + found.title;
    }""")


def test_on_a_phone(phone: Any) -> None:
    upload(phone, "x.png", png(small_collection.coloured("red", 999)))
    settle(phone, HITS, 10)
    first = tiles(phone, HITS).first
    wait_until(phone, lambda: 0 < first.bounding_box()["y"] < 700)  # in sight, though it lies below the choices
    box = first.bounding_box()
    assert box["width"] >= 90
    tiles(phone, HITS).nth(4).tap()
    settle(phone, WAY, 2)
    assert phone.evaluate("document.documentElement.scrollWidth") == 375
    main = "document.querySelector('[data-testid=stMain]')"
    assert phone.evaluate(f"{main}.scrollWidth <= {main}.clientWidth")
    phone.get_by_role("link", name="How good is it?").last.click()
    phone.get_by_text("Nothing is measured yet").wait_for()
    assert phone.evaluate("document.documentElement.scrollWidth") == 375
