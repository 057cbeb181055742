"""The server, as a client meets it: a process of its own on a loopback port, a small index, a small real network."""

import asyncio
import hashlib
import io
import json
import os
import re
import runpy
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import POSIX, ROOT, picture
from hostile_pictures import many_scans
from msgspec import to_builtins
from msgspec.structs import replace
from PIL import Image
from small_collection import write_index

from lookalike.api import ids, problems
from lookalike.api import server as launch
from lookalike.api.app import create
from lookalike.api.asking import Askers, Brief
from lookalike.api.batching import Batcher
from lookalike.api.collection import ServedCollection
from lookalike.api.service import Service
from lookalike.api.settings import Settings
from lookalike.artifacts import descriptions
from lookalike.artifacts.descriptions import Embedding, Network, describe
from lookalike.base.errors import LookalikeError
from lookalike.base.files import new_folder, write_json
from lookalike.collection import thumbnails
from lookalike.collection.collection import Gallery
from lookalike.collection.picture_search import Pictures
from lookalike.images import decode
from lookalike.refinement import refinement
from lookalike.runtimes import openvino
from proof.patience import patience

pytestmark = pytest.mark.slow  # servers of their own

PATHS = [f"{label}/digit_{number:04}.{'jpg' if number % 3 == 1 else 'png'}" for label in "34" for number in range(20)]
FIRST = "3/digit_0003.png"
SIZE, D = 32, 48
SECRET = "a-word-in-the-metadata"


def network(folder: Path, layers: int = 1, seed: int = 0) -> Network:
    """Write a convolutional network with random weights, for OpenVINO; more layers take longer."""
    from openvino import opset13 as ops

    from lookalike.networks.openvino_setup import ov, save

    draw = np.random.default_rng(seed)
    pixels = ops.parameter([-1, -1, -1, 3], np.uint8)
    rest = ops.multiply(ops.convert(pixels, "f32"), np.float32(1 / 255))
    rest = ops.transpose(rest, np.array([0, 3, 1, 2]))
    width = 3
    for _ in range(layers):
        kernel = draw.normal(size=(D, width, 3, 3)).astype(np.float32) / np.sqrt(9 * width).astype(np.float32)
        rest = ops.relu(ops.convolution(rest, kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
        width = D
    model = ov.Model([ops.reduce_mean(rest, np.array([2, 3]))], [pixels], "small")
    described = Network("small", "random", "last", "avg", D, 1, f"{seed}-{layers}")
    with new_folder(folder) as partial:
        save(model, partial / "network.xml")
        write_json(partial / "model.json", to_builtins(described))
    return described


@dataclass(frozen=True)
class Where:
    """A collection on disk."""

    folder: Path

    @property
    def index(self) -> Path:
        return self.folder / "index"

    @property
    def options(self) -> list[str]:
        return [f"--{name}={self.folder / name}" for name in ("index", "model", "changes")]

    @property
    def journal(self) -> Path:
        return self.folder / "changes/journal.sqlite"

    def settings(self, **more: Any) -> Settings:
        return Settings(*(self.folder / name for name in ("index", "model", "changes", "raw")), **more)

    def open(self) -> Pictures:
        return Pictures(self.index, self.folder / "model", self.folder / "changes")

    def rebuild(self, embedding: Embedding | None = None, paths: list[str] = PATHS) -> None:
        """Write the index alone, with features that no network gave, as if under this embedding."""
        draw = np.random.default_rng(0)
        features = {path: draw.normal(size=D).astype(np.float32) for path in paths}
        write_index(self.index, features, embedding or Embedding(describe(self.folder / "model"), SIZE, "pad"))

    def content(self, path: str = FIRST) -> bytes:
        return (self.folder / "raw" / path).read_bytes()

    def built(self, layers: int = 1, seed: int = 0, paths: list[str] = PATHS) -> "Where":
        """Write the pictures, the network, and, as the stages do, the index."""
        raw = self.folder / "raw"
        for number, path in enumerate(paths):
            (raw / path).parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[0x010E] = SECRET
            picture(number, 60, 40).save(raw / path, exif=exif)
        described = network(self.folder / "model", layers, seed)
        embed = openvino.load(self.folder / "model", SIZE, 1, "float32")
        squares = [decode.fit(decode.decode((raw / path).read_bytes(), 10**6), SIZE, "pad") for path in paths]
        features = {path: embed(square[np.newaxis])[0] for path, square in zip(paths, squares, strict=True)}
        refined = {**to_builtins(refinement.OFF), "pca": 16, "augment": 3, "expand": 3}
        write_index(self.index, features, Embedding(described, SIZE, "pad"), refined, storage="float32")
        return self


class Server:
    """`lookalike serve`, running."""

    def __init__(self, where: Where, *options: str, **environment: str) -> None:
        self.where = where
        self.log = (where.folder / f"log-{time.monotonic_ns()}").open("w+")
        command = [sys.executable, "-m", "lookalike.cli", "serve", "--port=0", f"--images={where.folder / 'raw'}"]
        self.process = subprocess.Popen(
            [*command, *where.options, *options], stderr=self.log, cwd=where.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
        deadline = time.monotonic() + patience(120)
        while not (found := re.search(r"serving on (http://\S+)", self.said())):
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        self.url = found[1]
        self.client = httpx.Client(base_url=self.url, timeout=patience(60))
        token = environment.get("LOOKALIKE_TOKEN")
        if token:
            self.client.headers["Authorization"] = f"Bearer {token}"
        assert self.client.get("/ready").status_code == 200, self.said()  # it says that it serves when it does
        assert f"listening on {self.url}; the network is being loaded\n" in self.said().partition("serving on")[0]

    def said(self) -> str:
        return Path(self.log.name).read_text()

    def search(self, content: bytes, **options: Any) -> httpx.Response:
        return self.client.post("/search", content=content, params=options)

    def figure(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.client.close()
        assert self.process.wait(patience(60)) == 0, self.said()
        self.log.close()


@contextmanager
def serving(where: Where, *options: str, **environment: str) -> Iterator[Server]:
    server = Server(where, *options, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("LOOKALIKE_TOKEN", raising=False)
        yield


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Where:
    return Where(tmp_path_factory.mktemp("collection")).built()


@pytest.fixture(scope="module")
def server(where: Where) -> Iterator[Server]:
    """One for the tests that leave the collection as it was."""
    with serving(where, "--max-bytes=1000000", "--max-pixels=4000000", "--cors=https://page.example") as running:
        yield running


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Where:
    """A collection whose network takes tens of milliseconds."""
    return Where(tmp_path_factory.mktemp("slow")).built(layers=40)


@pytest.fixture
def own(where: Where, tmp_path: Path) -> Where:
    """A collection of the test's own."""
    for name in ("raw", "model", "index"):
        shutil.copytree(where.folder / name, tmp_path / name)
    shutil.copy(where.index.with_suffix(".json"), tmp_path / "index.json")
    return Where(tmp_path)


def is_problem(answer: httpx.Response, kind: problems.Kind) -> bool:
    """An answer is a problem of a kind, complete, and with a sentence."""
    content = answer.json()
    assert (answer.status_code, content["type"]) == (kind.status, kind.type), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(content) == {"type", "title", "status", "detail"} and len(content["detail"]) > 10
    assert answer.headers["cache-control"] == "no-store"
    assert all(name in answer.headers for name in kind.headers)
    assert "/" + "tmp" not in answer.text  # no path of the machine
    return True


def as_sent(hits: list[Any]) -> list[dict[str, Any]]:
    return [{**hit.fields(), "id": ids.of(hit.path)} for hit in hits]


# --- searching --------------------------------------------------------------------------------------------------------


def test_a_search_finds_what_the_command_finds(server: Server, where: Where) -> None:
    content, alone = where.content(), where.open()
    expected = as_sent(alone.search(content, 5))
    assert server.search(content, k=5).json()["hits"] == expected
    answer = server.client.post("/search?k=5", files={"file": ("../../x", content, "text/html")})
    assert answer.json()["hits"] == expected
    assert expected[0]["path"] == FIRST
    assert server.search(content, k=41).json()["hits"] == as_sent(where.open().search(content, 1000))  # all 40
    assert len(server.client.get(f"{ITEM}/similar?k=40").json()["hits"]) == 39
    only = server.search(content, k=3, label="4", min_similarity=-0.5).json()["hits"]
    assert only == as_sent(alone.search(content, 3, -0.5, "4"))
    assert len(server.search(content).json()["hits"]) == 10


def test_similar_needs_no_network(server: Server, where: Where) -> None:
    before = server.figure("lookalike_batch_size_count")
    answer = server.client.get(f"/items/{ids.of(FIRST)}/similar", params={"k": 39})
    assert answer.json()["hits"] == as_sent(where.open().gallery.similar(FIRST, 39))
    assert server.figure("lookalike_batch_size_count") == before


def test_images_are_served_without_their_metadata(server: Server, where: Where) -> None:
    for path, kind in ((FIRST, "PNG"), ("3/digit_0001.jpg", "JPEG")):
        assert SECRET.encode() in where.content(path)
        answer = server.client.get(f"/items/{ids.of(path)}/image")
        image = Image.open(io.BytesIO(answer.content))
        assert (image.format, image.size, dict(image.getexif())) == (kind, (60, 40), {})
        assert SECRET.encode() not in answer.content
        assert answer.headers["content-type"] == f"image/{kind.lower()}"
        tag = {"If-None-Match": answer.headers["etag"]}
        assert server.client.get(f"/items/{ids.of(path)}/image", headers=tag).status_code == 304
        assert server.client.get(f"/items/{ids.of(path)}/thumbnail", headers=tag).status_code == 200
    small = server.client.get(f"/items/{ids.of(FIRST)}/thumbnail", params={"size": 30})
    assert Image.open(io.BytesIO(small.content)).size == (30, 20)


def test_an_original_outside_the_folder_is_not_served(own: Where) -> None:
    (own.folder / "secret.png").write_bytes(own.content())
    (own.folder / "raw" / FIRST).unlink()
    (own.folder / "raw" / FIRST).symlink_to(own.folder / "secret.png")
    (own.folder / "raw" / "3/digit_0000.png").unlink()
    with serving(own) as server:
        for path in (FIRST, "3/digit_0000.png"):
            assert is_problem(server.client.get(f"/items/{ids.of(path)}/image"), problems.NO_ORIGINAL)


def test_ids_are_looked_up_and_nothing_else(server: Server) -> None:
    for text in (ids.of("../secret.png"), ids.of("/etc/passwd"), ids.of("3/digit_0003.png\0"), "..", "%2e%2e", "é", "A",
                 ids.of(FIRST) + "=", ids.of("3/./digit_0003.png")):  # fmt: skip
        assert server.client.get(f"/items/{text}/image").status_code == 404


# --- every error ------------------------------------------------------------------------------------------------------

ITEM = f"/items/{ids.of(FIRST)}"
WRONG: list[tuple[str, str, dict[str, Any], problems.Kind]] = [
    ("GET", f"{ITEM}/similar?k=0", {}, problems.INVALID),
    ("GET", f"{ITEM}/similar?k=1001", {}, problems.INVALID),
    ("GET", f"{ITEM}/similar?k=x", {}, problems.INVALID),
    ("GET", f"{ITEM}/similar?min_similarity=nan", {}, problems.INVALID),
    ("GET", f"{ITEM}/similar?label=5", {}, problems.INVALID),
    ("GET", f"{ITEM}/thumbnail?size=9999", {}, problems.INVALID),
    ("GET", "/items/nothing/similar", {}, problems.UNKNOWN_ITEM),
    ("GET", "/items/nothing", {}, problems.UNKNOWN_ITEM),
    ("DELETE", "/items/nothing", {}, problems.UNKNOWN_ITEM),
    ("GET", "/nothing", {}, problems.NO_ROUTE),
    ("PUT", "/search", {}, problems.METHOD),
    ("POST", "/search", {}, problems.NO_PICTURE),
    ("POST", "/search", {"data": {"file": "text"}, "files": {"other": b"x"}}, problems.NO_PICTURE),
    ("POST", "/search", {"files": {"file": b""}}, problems.NO_PICTURE),
    ("POST", "/search", {"json": {"url": "http://127.0.0.1/x.png"}}, problems.NOT_AN_IMAGE),
    ("POST", "/search", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, problems.BROKEN_UPLOAD),
    ("POST", "/search", {"content": b"--a\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=a"}},
     problems.NO_PICTURE),
    ("POST", "/search?label=5", {"files": {"file": "GOOD"}}, problems.INVALID),
    ("POST", "/search?k=1001", {"files": {"file": "GOOD"}}, problems.INVALID),
    ("POST", "/items?label=3&name=digit_0003.png", {"files": {"file": "GOOD"}}, problems.EXISTS),
    ("POST", "/items", {"files": {"file": "GOOD"}, "data": {"name": "x.exe"}}, problems.INVALID),
    ("POST", "/items", {"files": {"file": "GOOD"}, "data": {"name": "x.png", "label": "../.."}}, problems.INVALID),
    ("POST", "/items", {"files": {"file": "GOOD"}, "data": {"name": ".x.png"}}, problems.INVALID),
    ("POST", "/items", {"files": {"file": "GOOD"}, "data": {"name": "a\nb.png"}}, problems.INVALID),
    ("POST", "/items", {"files": {"file": "GOOD"}, "data": {"replace": "perhaps"}}, problems.INVALID),
    ("POST", "/items", {"content": b"x" * 10}, problems.NOT_AN_IMAGE),
]  # fmt: skip


@pytest.mark.parametrize(("method", "target", "sent", "kind"), WRONG, ids=[f"{m} {t} {k.name}" for m, t, _, k in WRONG])
def test_every_mistake_has_its_problem(
    server: Server, where: Where, method: str, target: str, sent: dict[str, Any], kind: problems.Kind
) -> None:
    if sent.get("files") == {"file": "GOOD"}:
        sent = {**sent, "files": {"file": where.content()}}
    assert is_problem(server.client.request(method, target, **sent), kind)


@pytest.mark.parametrize(
    ("method", "target", "sent", "detail"),
    [
        ("POST", "/search?limit=3", {}, "unknown parameter 'limit'; Known: k, label, min_similarity, "),
        ("POST", "/search?min_similarty=0.5", {}, "unknown parameter 'min_similarty'; did you mean min_similarity?"),
        ("POST", "/search?id=x", {}, "unknown parameter 'id'"),
        ("POST", "/search", {"data": {"k": "3"}}, "unknown field of the form 'k'; none is known here"),
        ("POST", "/items?lable=3", {}, "unknown parameter 'lable'; did you mean label? Known: label, name, replace"),
        ("POST", "/items", {"data": {"lable": "3"}}, "unknown field of the form 'lable'; did you mean label?"),
        ("GET", f"{ITEM}/similar?id=x", None, "unknown parameter 'id'"),
        ("GET", f"{ITEM}/image?size=64", None, "unknown parameter 'size'; none is known here"),
        ("DELETE", f"{ITEM}?path=3", None, "unknown parameter 'path'; none is known here"),
    ],
)  # fmt: skip
def test_what_nothing_reads_is_refused(
    server: Server, where: Where, method: str, target: str, sent: dict[str, Any] | None, detail: str
) -> None:
    picture = {} if sent is None else {"files": {"file": where.content()}, **sent}
    answer = server.client.request(method, target, **picture)
    assert is_problem(answer, problems.INVALID) and answer.json()["detail"].startswith(detail), answer.json()
    assert server.client.get("/health?t=1").status_code == 200
    assert server.client.get(ITEM).status_code == 200


# --- hostile uploads --------------------------------------------------------------------------------------------------


def saved(kind: str, size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    out = io.BytesIO()
    picture(1, *size).save(out, kind, **options)
    return out.getvalue()


def animated(kind: str) -> bytes:
    return saved(kind, save_all=True, append_images=[picture(2), picture(3)])


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def with_archive(content: bytes) -> bytes:
    out = io.BytesIO(content)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("run.class", "x")
    return out.getvalue()


HOSTILE: dict[str, tuple[Callable[[], bytes], problems.Kind]] = {
    "truncated JPEG": (lambda: saved("JPEG")[:-60], problems.BROKEN_IMAGE),
    "head of a JPEG": (lambda: saved("JPEG")[:4], problems.NOT_AN_IMAGE),
    "truncated PNG": (lambda: saved("PNG")[:-60], problems.BROKEN_IMAGE),
    "huge claim": (lambda: png_that_claims(60_000, 60_000), problems.TOO_MANY_PIXELS),
    "lying claim": (lambda: png_that_claims(1000, 1000), problems.BROKEN_IMAGE),
    "many pixels": (lambda: saved("PNG", (2500, 2000)), problems.TOO_MANY_PIXELS),
    "many bytes": (lambda: os.urandom(1_000_001), problems.TOO_MANY_BYTES),
    "JPEG and ZIP": (lambda: with_archive(saved("JPEG")), problems.TWO_FORMATS),
    "GIF and script": (lambda: saved("GIF") + b"=1;<script>alert(1)</script>", problems.TWO_FORMATS),
    "PNG with a page": (lambda: saved("PNG")[:-12] + b"<!DOCTYPE html><html>", problems.TWO_FORMATS),
    "JPEG and PDF": (lambda: saved("JPEG", comment=b"%PDF-1.7 obj"), problems.TWO_FORMATS),
    "JPEG of many scans": (lambda: saved("JPEG") + b"\xff\xda" * 100, problems.BROKEN_IMAGE),
    "animated GIF": (lambda: animated("GIF"), problems.SEVERAL_FRAMES),
    "animated WebP": (lambda: animated("WEBP"), problems.SEVERAL_FRAMES),
    "animated PNG": (lambda: animated("PNG"), problems.SEVERAL_FRAMES),
    "pages of TIFF": (lambda: animated("TIFF"), problems.SEVERAL_FRAMES),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>',
            problems.NOT_AN_IMAGE),
    "EPS": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", problems.NOT_AN_IMAGE),
    "text": (lambda: b"not a picture at all", problems.NOT_AN_IMAGE),
    "zeros": (lambda: bytes(1000), problems.NOT_AN_IMAGE),
    "address": (lambda: b"http://169.254.169.254/latest/meta-data", problems.NOT_AN_IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_refused_and_the_next_one_works(server: Server, where: Where, name: str) -> None:
    make, kind = HOSTILE[name]
    content = make()
    assert is_problem(server.search(content), kind)
    assert is_problem(server.client.post("/search", files={"file": ("a.jpg", content, "image/jpeg")}), kind)
    assert is_problem(server.client.post("/items", files={"file": ("../../x", content)}), kind)
    assert server.search(where.content(), k=1).json()["hits"][0]["path"] == FIRST


def test_a_photo_with_previews_is_one_picture(server: Server) -> None:
    """As many telephones write it (MPO)."""
    assert server.search(saved("MPO", save_all=True, append_images=[picture(2)])).status_code == 200


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize(
    ("first", "chunk", "status", "problem", "limit"),
    [
        (b"", b"\x89PNG" * 25_000, b"413", b"too-many-bytes", 1_000_000),
        (b"\xff\xd8", b"\xff" * 100_000, b"422", b"fill bytes in a row", 300_000),
    ],
    ids=["too large", "fill bytes"],
)
def test_a_body_is_refused_before_it_is_there(server: Server, form, first, chunk, status, problem, limit) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience(60)) as door:
        kind = "multipart/form-data; boundary=b" if form else "image/png"
        start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' if form else b""
        door.sendall(f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
                     "Transfer-Encoding: chunked\r\n\r\n".encode())  # fmt: skip
        sent = 0
        if start + first:
            begin = start + first + chunk[:1]
            door.sendall(b"%x\r\n%s\r\n" % (len(begin), begin))
        answer = b""
        while sent < 50_000_000 and not answer:
            door.settimeout(patience(60))
            door.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            sent += len(chunk)
            door.settimeout(0.02 if sent <= limit else patience(60))  # past the limit it has to answer
            try:
                answer = door.recv(65536)
            except TimeoutError:
                pass
        door.settimeout(patience(60))
        while more := door.recv(65536):
            answer += more
        assert answer.startswith(b"HTTP/1.1 %s " % status) and problem in answer
        assert b"connection: close" in answer.lower()
        assert sent < 3_000_000
    assert server.client.get("/ready").status_code == 200


def test_a_body_that_is_declared_too_large_is_not_received(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience(60)) as door:
        door.sendall(f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Length: 50000000\r\n\r\n".encode())
        assert door.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_who_breaks_off_leaves_nothing_behind(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience(60)) as door:
        door.sendall(f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Length: 500\r\n\r\nhalf".encode())
    deadline = time.monotonic() + patience(60)
    while server.figure("lookalike_queries_under_way"):
        assert time.monotonic() < deadline
    assert server.process.poll() is None


# --- changes ----------------------------------------------------------------------------------------------------------


def test_images_are_added_replaced_and_removed(own: Where) -> None:
    content, other = saved("JPEG", (70, 50), comment=SECRET.encode()), saved("PNG", (50, 70))
    with serving(own) as server:
        form = {"label": "cat", "name": r"C:\photos\..\tom.jpg"}
        answer = server.client.post("/items", files={"file": ("../../x", content)}, data=form)
        assert answer.status_code == 201
        assert answer.json() == {"id": ids.of("cat/tom.jpg"), "path": "cat/tom.jpg", "label": "cat"}
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
        assert server.client.get(f"/items/{ids.of('9/new.png')}/similar").status_code == 200


def test_an_index_that_is_rebuilt_is_opened_anew(own: Where) -> None:
    with serving(own) as server:
        assert server.client.post("/items", content=saved("PNG"), params={"name": "kept.png"}).status_code == 201
        own.built(paths=[*PATHS, "5/new.png"])
        assert len(server.client.get(f"/items/{ids.of('5/new.png')}/similar").json()["hits"]) == 10
        assert server.client.get("/ready").json()["images"] == len(PATHS) + 2
        own.built(layers=2, seed=5)  # under another network, by which the addition is embedded anew
        alone = own.open()
        for k in (1, 41):
            assert server.search(own.content(), k=k).json()["hits"] == as_sent(alone.search(own.content(), k))
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


# --- load -------------------------------------------------------------------------------------------------------------


def test_pictures_that_come_together_are_embedded_together(slow: Where) -> None:
    contents = [saved("PNG", (40 + number, 30)) for number in range(16)]
    alone = slow.open()
    with serving(slow, "--batch=8") as server:
        expected = [as_sent(alone.search(content, 5)) for content in contents]
        calls, pictures = (server.figure(f"lookalike_batch_size_{what}") for what in ("count", "sum"))
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda content: server.search(content, k=5).json()["hits"], contents))
        assert found == expected
        assert server.figure("lookalike_batch_size_sum") - pictures == 16
        assert server.figure("lookalike_batch_size_count") - calls < 16
        assert server.figure('lookalike_batch_size_bucket{le="8.0"}') == server.figure("lookalike_batch_size_count")


def test_a_vector_does_not_depend_on_its_company(slow: Where) -> None:
    service = Service(Settings(slow.index, slow.folder / "model", slow.folder / "changes"), print)
    service.open()
    embed = service._load(slow.open().gallery.embedding)
    pixels = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), dtype=np.uint8)
    alone = np.concatenate([embed(pixels[[row]]) for row in range(16)])
    for size in (2, 3, 8, 16):
        np.testing.assert_allclose(embed(pixels[:size]), alone[:size], rtol=0, atol=1e-6 * np.abs(alone).max())
    service.close()


def test_past_the_queue_a_request_is_turned_away(slow: Where) -> None:
    with serving(slow, "--queue=3", "--batch=1") as server, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: server.search(slow.content(), k=1), range(24)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(refused) < 24
        for answer in refused:
            assert is_problem(answer, problems.QUEUE_FULL) and int(answer.headers["retry-after"]) >= 1
        assert server.search(slow.content(), k=1).status_code == 200


def test_a_signal_lets_what_is_under_way_end(slow: Where) -> None:
    server = Server(slow, "--batch=1")
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(server.search, slow.content(), k=1) for _ in range(6)]
        while server.figure("lookalike_queries_under_way") + sum(answer.done() for answer in answers) < 6:
            pass  # one that has not arrived yet would be turned away
        server.process.send_signal(signal.SIGTERM)
        assert {answer.result().status_code for answer in answers} == {200}
    assert server.process.wait(patience(60)) == 0


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_a_token_is_needed_where_one_is_set(where: Where) -> None:
    word = "0123456789abcdef"
    with serving(where, LOOKALIKE_TOKEN=word) as server:
        for header in ("", "Bearer", "Bearer 0123456789abcdeX", f"Basic {word}", "Bearer é"):
            for target in ("/ready", "/metrics", "/openapi.json", f"{ITEM}/similar", "/nothing"):
                answer = httpx.get(f"{server.url}{target}", headers={"Authorization": header.encode()})
                assert is_problem(answer, problems.UNAUTHORIZED)
        assert is_problem(httpx.post(f"{server.url}/search", content=where.content()), problems.UNAUTHORIZED)
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.client.get("/openapi.json").status_code == 200
        assert word not in server.said()


def test_a_weak_token_and_a_taken_port_are_refused_in_a_line(where: Where, server: Server) -> None:
    (where.folder / "token").write_text("short\n")
    port = server.url.rpartition(":")[2]
    for options, reason in ([f"--token-file={where.folder / 'token'}"], "16"), ([f"--port={port}"], port):
        done = subprocess.run(
            [sys.executable, "-m", "lookalike.cli", "serve", *where.options, *options],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 1 and reason in done.stderr and done.stderr.count("\n") == 1


def test_without_its_packages_serve_says_what_to_install(where: Where) -> None:
    program = "import sys; sys.modules['fastapi'] = None; from lookalike.cli import app; app(['serve'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1
    expected = "lookalike: error: fastapi is not installed: pip install -r requirements/serve.txt\n"
    assert done.stderr == expected


def test_pages_from_elsewhere(server: Server, where: Where) -> None:
    def asked(origin: str) -> httpx.Response:
        return server.client.post("/search?k=1", content=where.content(), headers={"Origin": origin})

    assert is_problem(asked("https://elsewhere.example"), problems.FORBIDDEN)
    assert is_problem(asked("null"), problems.FORBIDDEN)
    assert asked("https://page.example").headers["access-control-allow-origin"] == "https://page.example"
    assert asked(server.url).status_code == 200
    rebound = server.client.get("/ready", headers={"Host": "attacker.example"})
    assert is_problem(rebound, problems.FORBIDDEN)
    for host in ("localhost:1", "[::1]:1"):
        assert server.client.get("/ready", headers={"Host": host}).status_code == 200
    with serving(where) as plain:
        ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
        for answer in (plain.client.options("/search", headers=ask), plain.client.get("/ready", headers=ask)):
            assert "access-control-allow-origin" not in answer.headers


def test_every_answer_has_its_headers_and_a_line_in_the_log(server: Server) -> None:
    asked = {"/health": 200, "/nothing": 404, f"{ITEM}/image": 200, f"{ITEM}/similar": 200}
    before = len(logged(server))
    for target in asked:
        headers = server.client.get(target).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "server" not in headers
        assert "no-" in headers["cache-control"]
    while not asked.items() <= {line["path"]: line["status"] for line in logged(server)[before:]}.items():
        time.sleep(0.01)  # a line is written when its answer has left, and not in their order
    assert all({"time", "client", "method", "path", "status", "bytes", "ms"} == set(line) for line in logged(server))


def logged(server: Server) -> list[dict[str, Any]]:
    """The whole lines of the log."""
    return [json.loads(line) for line in server.said().split("\n")[:-1] if line.startswith("{")]


# --- limits of time, in this process ----------------------------------------------------------------------------------


def answered_here(
    where: Where, settings: dict[str, Any], ask: Callable[[httpx.AsyncClient], Any], load: bool = True,
    raising: bool = True,
) -> Any:  # fmt: skip
    service = Service(where.settings(**settings), print)
    service.open()
    if load:
        service.load().result()
    _, app = create(service, log=False)

    async def run() -> Any:
        door = httpx.ASGITransport(app, raise_app_exceptions=raising)
        async with httpx.AsyncClient(transport=door, base_url="http://x") as client:
            return await ask(client)

    try:
        return asyncio.run(run())
    finally:
        service.close()


def test_decoding_and_receiving_have_a_limit_of_time(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stalled() -> Any:
        yield b"\x89PNG"
        await asyncio.Event().wait()

    settings = {"seconds": 0.1, "upload_seconds": 0.2}
    late = answered_here(where, settings, lambda client: client.post("/search", content=stalled()))
    assert is_problem(late, problems.SLOW_UPLOAD)
    monkeypatch.setattr("lookalike.api.service.cores", lambda: 1)

    async def two(client: httpx.AsyncClient) -> Any:
        return await asyncio.gather(*(client.post("/search", content=large) for _ in range(2)))

    large = many_scans(50, 7000)
    late, never_begun = sorted(answered_here(where, settings, two), key=lambda answer: answer.status_code)
    assert is_problem(late, problems.TOO_SLOW)
    assert is_problem(never_begun, problems.QUEUE_FULL) and "decoded" in never_begun.json()["detail"]


def test_it_is_not_ready_before_the_network_is_loaded(where: Where) -> None:
    for method, target in (("GET", "/ready"), ("POST", "/search"), ("POST", "/items")):
        early = answered_here(
            where, {}, lambda client, method=method, target=target: client.request(method, target), load=False
        )
        assert is_problem(early, problems.NOT_READY)
    alive = answered_here(where, {}, lambda client: client.get(f"{ITEM}/similar"), load=False)
    assert alive.status_code == 200


# --- what goes wrong around it, in this process -----------------------------------------------------------------------

ONE_BY_ONE = {"batch": 1}  # a single network is loaded


def test_uploads_may_hold_so_much_memory_together(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    content = where.content()
    monkeypatch.setattr("lookalike.api.admission.HELD_MOST", len(content))

    async def ask(client: httpx.AsyncClient) -> Any:
        arrived, refused = asyncio.Event(), asyncio.Event()

        async def halting() -> Any:
            yield content
            arrived.set()
            await refused.wait()

        first = asyncio.create_task(client.post("/search", content=halting()))
        await arrived.wait()
        second = await client.post("/search", content=content)
        refused.set()
        return await first, second, await client.post("/search", content=content)

    first, second, after = answered_here(where, ONE_BY_ONE, ask)
    assert is_problem(second, problems.QUEUE_FULL) and "bytes of uploads" in second.json()["detail"]
    assert (first.status_code, after.status_code) == (200, 200)


def test_an_error_that_was_not_foreseen_says_nothing_and_the_next_request_is_tried(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, load = iter([RuntimeError("a secret of the machine")]), openvino.load

    def failing_once(*arguments: Any) -> Any:
        embed = load(*arguments)

        def run(pixels: np.ndarray) -> np.ndarray:
            for error in errors:
                raise error
            return embed(pixels)

        return run

    monkeypatch.setattr(openvino, "load", failing_once)

    async def ask(client: httpx.AsyncClient) -> Any:
        return [await client.post("/search", content=where.content()) for _ in range(2)]

    failed, after = answered_here(where, ONE_BY_ONE, ask, raising=False)
    assert is_problem(failed, problems.INTERNAL) and "secret" not in failed.text
    assert after.status_code == 200


@pytest.mark.parametrize("brief", [True, False])
def test_a_damaged_journal_is_the_operators_to_mend(
    own: Where, brief: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Brief, "enough", lambda self: brief)  # whether it is asked in the event loop
    own.journal.parent.mkdir()

    async def ask(client: httpx.AsyncClient) -> Any:
        own.journal.write_bytes(b"broken" * 1000)
        damaged = await client.get(ITEM)
        own.journal.unlink()
        return damaged, await client.get(ITEM)

    damaged, mended = answered_here(own, {}, ask, load=False)
    assert is_problem(damaged, problems.UNAVAILABLE) and mended.status_code == 200
    assert f"{own.journal} cannot be read" in (said := capsys.readouterr().out) and "restore it from a backup" in said


def test_a_journal_that_another_process_keeps_locked_changes_nothing(
    own: Where, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lookalike.collection.journal.WAIT", 0.05)

    async def ask(client: httpx.AsyncClient) -> Any:
        async def change() -> list[httpx.Response]:
            return [await client.post("/items?name=b.png", content=own.content()), await client.delete(ITEM)]

        await client.post("/items?name=a.png", content=own.content())
        with closing(sqlite3.connect(own.journal)) as other:
            other.execute("BEGIN IMMEDIATE")
            refused, images = await change(), (await client.get("/ready")).json()["images"]
        return refused, images, await change()

    refused, images, after = answered_here(own, ONE_BY_ONE, ask)
    assert all(is_problem(answer, problems.UNAVAILABLE) for answer in refused) and images == len(PATHS) + 1
    assert "nothing was changed, try again" in capsys.readouterr().out
    assert [answer.status_code for answer in after] == [201, 204]


def test_a_name_that_another_process_takes_meanwhile_is_taken(own: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Gallery.add

    def late(gallery: Gallery, *picture: Any, **options: Any) -> None:
        add(own.open().gallery, *picture, **options)
        add(gallery, *picture, **options)

    monkeypatch.setattr(Gallery, "add", late)
    answer = answered_here(own, ONE_BY_ONE, lambda client: client.post("/items?name=x.png", content=own.content()))
    assert is_problem(answer, problems.EXISTS) and answer.json()["detail"].startswith("x.png is in the collection")


@pytest.mark.parametrize("times", [1, 2])
def test_an_index_rebuilt_while_a_picture_is_embedded_is_asked_once_more(
    own: Where, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    sizes, submit = iter([24, 28][:times]), Batcher.submit

    def meanwhile(batcher: Batcher, embedding: Embedding, pixels: np.ndarray) -> Any:
        if pixels.size and (size := next(sizes, None)):
            own.rebuild(Embedding(embedding.network, size, "pad"))
        return submit(batcher, embedding, pixels)

    monkeypatch.setattr(Batcher, "submit", meanwhile)
    answer = answered_here(own, ONE_BY_ONE, lambda client: client.post("/search?k=3", content=own.content()))
    if times == 1:
        assert answer.json()["hits"] == as_sent(own.open().search(own.content(), 3))
    else:
        assert is_problem(answer, problems.UNAVAILABLE) and "being rebuilt" in answer.json()["detail"]


def test_an_index_of_another_network_than_the_servers_is_the_operators_to_mend(
    own: Where, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ask(client: httpx.AsyncClient) -> Any:
        own.rebuild(Embedding(replace(describe(own.folder / "model"), fingerprint="another"), SIZE, "pad"))
        apart = await client.post("/search", content=own.content())
        own.rebuild()
        return apart, await client.post("/search", content=own.content())

    apart, together = answered_here(own, ONE_BY_ONE, ask)
    assert is_problem(apart, problems.UNAVAILABLE) and together.status_code == 200
    assert "the index was made by small another" in (said := capsys.readouterr().out) and "dvc repro index" in said


def test_a_broken_reader_of_texts_is_the_operators_to_mend(own: Where, capsys: pytest.CaptureFixture[str]) -> None:
    for name in descriptions.FILES:
        (own.folder / "model" / name).write_text("broken")

    async def ask(client: httpx.AsyncClient) -> Any:
        return [await client.post("/search", params={"text": "red", "label": label}) for label in ("3", "unheard")]

    for answer in answered_here(own, {}, ask, load=False):
        assert is_problem(answer, problems.UNAVAILABLE)
    assert re.search("cannot read texts: .*dvc repro --force model|tokenizers, .*pip install", capsys.readouterr().out)


def test_a_collection_of_one_image_or_none_has_nothing_like_it(own: Where) -> None:
    own.rebuild(paths=[FIRST])

    async def ask(client: httpx.AsyncClient) -> Any:
        alone = await client.get(f"{ITEM}/similar"), await client.post("/search", content=own.content())
        await client.delete(ITEM)
        return *alone, await client.post("/search", content=own.content()), await client.get(f"{ITEM}/similar")

    similar, found, empty, gone = answered_here(own, ONE_BY_ONE, ask)
    assert (similar.json(), [hit["path"] for hit in found.json()["hits"]]) == ({"hits": []}, [FIRST])
    assert empty.json() == {"hits": []} and is_problem(gone, problems.UNKNOWN_ITEM)


def test_an_original_that_cannot_be_decoded_is_not_served(own: Where) -> None:
    (own.folder / "raw" / FIRST).write_bytes(b"broken")
    answer = answered_here(own, {}, lambda client: client.get(f"{ITEM}/thumbnail"), load=False)
    assert is_problem(answer, problems.NO_ORIGINAL) and "cannot be decoded" in answer.json()["detail"]


def test_damaged_pictures_of_a_journal_or_a_bundle_are_the_operators_to_mend(
    own: Where, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ask(client: httpx.AsyncClient) -> Any:
        added = (await client.post("/items?name=a.png", content=own.content())).headers["location"]
        with closing(sqlite3.connect(own.journal)) as file:
            file.execute("UPDATE images SET content = x'00'")
            file.commit()
        (own.folder / "raw" / thumbnails.FILE).write_bytes(b"broken")
        return await client.get(f"{added}/image"), await client.get(f"{ITEM}/image")

    assert all(is_problem(answer, problems.UNAVAILABLE) for answer in answered_here(own, ONE_BY_ONE, ask))
    said = capsys.readouterr().out
    assert "is damaged); restore it from a backup" in said and "lookalike bundle" in said


def test_a_form_of_an_unreadable_charset_is_a_broken_upload(where: Where) -> None:
    head = {"Content-Type": "multipart/form-data; boundary=a; charset=undefined"}
    body = b'--a\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n--a--\r\n'
    answer = answered_here(where, ONE_BY_ONE, lambda client: client.post("/search", content=body, headers=head))
    assert is_problem(answer, problems.BROKEN_UPLOAD) and "charset" in answer.json()["detail"]


# --- threads ----------------------------------------------------------------------------------------------------------


def test_threads_that_close_finish_what_waits_but_for_who_gave_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.api.asking.TOGETHER", 60)  # seconds: all are handed back at one time
    gate = threading.Event()

    async def ask() -> Any:
        askers = Askers(1, "ask", lambda: None)
        waiting = [asyncio.create_task(askers(work)) for work in (gate.wait, lambda: 2, lambda: 3)]
        await asyncio.sleep(0)  # all are handed over
        waiting[1].cancel()
        closing = threading.Thread(target=askers.close, daemon=True)
        closing.start()
        await asyncio.sleep(0.05)
        assert closing.is_alive()
        gate.set()
        found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), patience(60))
        closing.join(patience(60))
        return found, closing.is_alive()

    (first, second, third), alive = asyncio.run(ask())
    assert (first, third) == (True, 3) and isinstance(second, asyncio.CancelledError) and not alive


def test_a_picture_that_nobody_waits_for_is_not_embedded() -> None:
    begun, gate, loaded = threading.Event(), threading.Event(), []

    def load(embedding: Embedding) -> Any:
        loaded.append(embedding.image_size)

        def embed(pixels: np.ndarray) -> np.ndarray:
            begun.set()
            gate.wait(patience(60))
            return pixels[:, 0, 0].astype(np.float32)

        return embed

    batcher = Batcher(load, 4)
    described = Network("small", "random", "last", "avg", 3, 1, "x")
    one, other = (Embedding(described, size, "pad") for size in (2, 4))
    first = batcher.submit(one, np.full((2, 2, 3), 1, np.uint8))
    assert begun.wait(patience(60))
    given_up = batcher.submit(other, np.full((4, 4, 3), 2, np.uint8))  # a batch of its own: its network is another
    last = batcher.submit(one, np.full((2, 2, 3), 3, np.uint8))
    assert given_up.cancel()
    gate.set()
    assert (first.result(patience(60)).tolist(), last.result(patience(60)).tolist()) == ([1] * 3, [3] * 3)
    batcher.close()
    assert loaded == [2]


def test_who_waits_for_a_network_that_fails_hears_of_it_and_the_next_is_tried() -> None:
    begun, gate = threading.Event(), threading.Event()

    def load(_: Embedding) -> Any:
        begun.set()
        gate.wait(patience(60))
        return lambda pixels: pixels[:1, 0, 0].astype(np.float32)  # one vector, of however many pictures

    batcher = Batcher(load, 2)
    embedding, pixels = Embedding(Network("small", "random", "last", "avg", 3, 1, "x"), 2, "pad"), np.ones((2, 2, 3))
    first = batcher.submit(embedding, pixels)
    assert begun.wait(patience(60))
    second, third = (batcher.submit(embedding, pixels) for _ in range(2))  # together, when the first is done
    gate.set()
    with pytest.raises(ValueError, match="shorter"):
        third.result(patience(60))
    assert [each.result(patience(60)).tolist() for each in (first, second, batcher.submit(embedding, pixels))] == [
        [1] * 3
    ] * 3
    batcher.close()


def test_an_index_that_was_rebuilt_is_opened_once_for_all_who_ask(own: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, both = [], threading.Barrier(2)

    def open_pictures(*arguments: Any) -> Pictures:
        opened.append(Pictures(*arguments))
        return opened[-1]

    def question(gallery: Gallery) -> int:
        if gallery is opened[0].gallery:
            both.wait(patience(60))
        return len(gallery.state)

    monkeypatch.setattr("lookalike.api.collection.Pictures", open_pictures)
    served = ServedCollection(own.settings(), print)
    served.open()
    own.rebuild(paths=PATHS[:7])
    pool = Askers(2, "ask", lambda: None)

    async def ask() -> list[int]:
        return list(await asyncio.gather(served.ask(question, pool), served.ask(question, pool)))

    assert asyncio.run(ask()) == [7, 7] and len(opened) == 2
    pool.close()
    served.close()


# --- its start --------------------------------------------------------------------------------------------------------


@pytest.fixture
def signals() -> Iterator[None]:
    """Those that a server in this process takes are given back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_a_network_that_cannot_be_loaded_ends_the_server(own: Where) -> None:
    (own.folder / "model/network.xml").write_bytes(b"broken")
    said: list[str] = []
    with pytest.raises(LookalikeError, match=r"model.*dvc repro"):
        launch.run(own.settings(), "127.0.0.1", 0, said.append, log=False)
    assert [line.partition(" on ")[0] for line in said] == ["listening"]


@pytest.mark.parametrize(
    ("host", "word", "warned"),
    [("0.0.0.0", "", True), ("pictures.example", "", True), ("0.0.0.0", "0123456789abcdef", False), ("::1", "", False)],
)
def test_who_lets_anybody_in_is_warned(tmp_path: Path, host: str, word: str, warned: bool) -> None:
    said: list[str] = []
    with pytest.raises(LookalikeError, match="none"):  # it goes no further than the index
        launch.run(Settings(tmp_path / "none", token=word), host, 0, said.append)
    assert len(said) == warned and all(f"anybody who reaches {host} can" in line for line in said)
    assert not warned or "set LOOKALIKE_TOKEN" in said[0]


def test_a_file_without_a_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" \n")
    with pytest.raises(LookalikeError, match=r"/token holds no token; .*openssl rand -hex 16"):
        launch.token(tmp_path / "token")
    (tmp_path / "token").write_bytes(b"caf\xe9")
    with pytest.raises(LookalikeError, match=r"/token is not UTF-8 \(.* at byte 3\); .*openssl rand -hex 16"):
        launch.token(tmp_path / "token")


# --- as documented ----------------------------------------------------------------------------------------------------


def test_the_document_is_what_the_server_answers(
    where: Where, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_module("lookalike.api.__main__")
    assert not capsys.readouterr().out  # imported, it does nothing
    monkeypatch.setattr(sys, "argv", ["api", "openapi"])
    runpy.run_module("lookalike.api", run_name="__main__")
    document = json.loads(capsys.readouterr().out)
    assert "Problem" in document["components"]["schemas"]

    async def ask(client: httpx.AsyncClient) -> Any:
        return [(await client.get("/openapi.json")).json() for _ in range(2)]

    assert answered_here(where, {}, ask, load=False) == [document, document]
    monkeypatch.setattr(sys, "argv", ["api", "html"])
    with pytest.raises(SystemExit, match=r"python -m lookalike\.api docs, or openapi"):
        runpy.run_module("lookalike.api", run_name="__main__")


def test_the_page_is_what_the_server_says() -> None:
    made = subprocess.run([sys.executable, "-m", "lookalike.api", "docs"], cwd=ROOT, capture_output=True, text=True)
    assert (ROOT / "docs/api.md").read_text() == made.stdout, "python -m lookalike.api docs > docs/api.md"


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_examples_of_the_page_run(own: Where) -> None:
    commands = re.findall(r"^```console\n(curl .*?)\n```", (ROOT / "docs/api.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(commands) >= 9
    (own.folder / "data").mkdir()
    (own.folder / "data/raw").symlink_to(own.folder / "raw")
    with serving(own) as server:
        for command in commands:
            if "$LOOKALIKE_TOKEN" in command:
                continue
            command = command.replace("http://127.0.0.1:8000", server.url).replace("curl ", "curl -sS --fail ", 1)
            subprocess.run(command, shell=True, check=True, cwd=own.folder, stdout=subprocess.DEVNULL)


def test_every_answer_to_made_up_requests_is_as_documented(own: Where) -> None:
    """Schemathesis, seeded and short."""
    with serving(own, "--no-log") as server:
        config = own.folder / "schemathesis.toml"
        config.write_text("seed = 1\n[generation]\nmax-examples = 12\n[phases.stateful]\nenabled = false\n")
        checks = ("not_a_server_error", "status_code_conformance", "content_type_conformance",
                  "response_headers_conformance", "response_schema_conformance", "unsupported_method")  # fmt: skip
        done = subprocess.run(
            [str(Path(sys.executable).with_name("schemathesis")), f"--config-file={config}", "run",
             f"{server.url}/openapi.json", f"--checks={','.join(checks)}", "--generation-database=none"],
            capture_output=True, text=True, cwd=own.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert server.client.get("/ready").status_code == 200


def test_an_id_is_of_one_path() -> None:
    for path in (FIRST, "ünï/çødé ☃.png", "a" * 300, ""):
        assert ids.path(ids.of(path)) == path
