"""Changes over HTTP, and what other processes change."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

from lookalike.api import problems
from lookalike.api.schema import id_of
from lookalike.base.files import write_json
from lookalike.collection.query import Query
from tests.helpers.platforms import POSIX
from tests.helpers.project import ROOT
from tests.helpers.served_collection import (
    FIRST,
    ITEM,
    PATHS,
    SECRET,
    Server,
    Where,
    as_sent,
    is_problem,
    saved,
    serving,
)

pytestmark = pytest.mark.slow  # servers of their own


def test_images_are_added_replaced_and_removed(own: Where) -> None:
    content, other = saved("JPEG", (70, 50), comment=SECRET.encode()), saved("PNG", (50, 70))
    with serving(own) as server:
        form = {"label": "cat", "name": r"C:\photos\..\tom.jpg"}
        answer = server.client.post("/items", files={"file": ("../../x", content)}, data=form)
        assert answer.status_code == 201
        assert answer.json() == {"id": id_of("cat/tom.jpg"), "path": "cat/tom.jpg", "label": "cat"}
        here = answer.headers["location"]
        assert server.client.get(here).json() == answer.json()
        assert server.search(content, k=1).json()["hits"][0]["path"] == "cat/tom.jpg"
        image = server.client.get(f"{here}/image")
        assert SECRET.encode() in content and SECRET.encode() not in image.content
        assert is_problem(server.client.post("/items", content=content, params=form), problems.EXISTS)
        again = server.client.post("/items", content=other, params={**form, "replace": "true"})
        assert (again.status_code, again.json()) == (200, answer.json())
        changed = server.client.get(f"{here}/image", headers={"If-None-Match": image.headers["etag"]})
        assert Image.open(io.BytesIO(changed.content)).size == (50, 70)
        named = server.client.post("/items", files={"file": ("../../x", content)})
        assert named.json()["path"] == f"{hashlib.sha256(content).hexdigest()[:32]}.jpg"
        assert server.client.delete(here).status_code == 204
        assert is_problem(server.client.delete(here), problems.UNKNOWN_ITEM)
        assert is_problem(server.client.get(f"{here}/similar"), problems.UNKNOWN_ITEM)
        assert server.client.delete(ITEM).status_code == 204  # one of the index's own
        assert server.search(own.content(), k=1).json()["hits"][0]["path"] != FIRST
        assert server.client.get("/ready").json()["images"] == len(PATHS)
    assert (own.folder / "raw" / FIRST).exists()


def test_what_another_process_adds_is_seen_at_once(own: Where) -> None:
    (own.folder / "new.png").write_bytes(saved("PNG"))
    with serving(own) as server:
        subprocess.run(
            [sys.executable, "-m", "lookalike.cli", "add", str(own.folder / "new.png"), "--label=9", *own.options],
            check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert server.search(saved("PNG"), k=1, label="9").json()["hits"][0]["path"] == "9/new.png"
        assert server.client.get(f"/items/{id_of('9/new.png')}/similar").status_code == 200


def test_an_index_that_is_rebuilt_is_opened_anew(own: Where) -> None:
    with serving(own) as server:
        assert server.client.post("/items", content=saved("PNG"), params={"name": "kept.png"}).status_code == 201
        own.built(paths=[*PATHS, "5/new.png"])
        assert len(server.client.get(f"/items/{id_of('5/new.png')}/similar").json()["hits"]) == 10
        assert server.client.get("/ready").json()["images"] == len(PATHS) + 2
        own.built(layers=2, seed=5)  # under another network, by which the addition is embedded anew
        alone = own.open()
        for k in (1, 41):
            assert server.search(own.content(), k=k).json()["hits"] == as_sent(alone.search(own.content(), Query(k)))
        (own.index / "labels.npy").write_bytes(b"broken")
        write_json(own.index.with_suffix(".json"), {"files": {"x": "y"}})
        assert is_problem(server.search(own.content()), problems.UNAVAILABLE)
        own.built()
        assert server.search(own.content(), k=1).json()["hits"][0]["path"] == FIRST


@POSIX
def test_a_kill_loses_nothing_that_was_answered(own: Where) -> None:
    answered: list[str] = []
    for life in range(2):
        server = Server(own)

        def add(number: int, server: Server = server, life: int = life) -> None:
            try:
                sent = server.client.post("/items", content=saved("PNG"), params={"name": f"{life}-{number}.png"})
                if sent.status_code == 201:
                    answered.append(sent.json()["id"])
            except httpx.TransportError:
                pass  # it was killed

        before = len(answered)
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(add, number) for number in range(500)]
            while len(answered) < before + 12:
                time.sleep(0.005)
            server.process.send_signal(signal.SIGKILL)
            for each in running:
                each.cancel()
        server.process.wait()
    with serving(own) as server:
        lost = [each for each in answered if server.client.get(f"/items/{each}/thumbnail").status_code != 200]
        assert len(answered) >= 24 and not lost
