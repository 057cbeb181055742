"""A small collection with a real network, and `lookalike serve` on a loopback port."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from msgspec import to_builtins
from PIL import Image

from lookalike.api import problems
from lookalike.api.app import create
from lookalike.api.schema import id_of
from lookalike.api.service import Service
from lookalike.api.settings import Settings
from lookalike.artifacts.descriptions import Embedding, Network, describe
from lookalike.base.files import new_folder, write_json
from lookalike.collection.picture_search import Pictures
from lookalike.images import decode
from lookalike.refinement import refinement
from lookalike.runtimes import openvino
from proof.patience import patience
from tests.helpers.pictures import picture
from tests.helpers.project import ROOT
from tests.helpers.small_collection import write_index

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
    return [{**hit.fields(), "id": id_of(hit.path)} for hit in hits]


ITEM = f"/items/{id_of(FIRST)}"


def saved(kind: str, size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    out = io.BytesIO()
    picture(1, *size).save(out, kind, **options)
    return out.getvalue()


def answered_here(
    where: Where, settings: dict[str, Any], ask: Callable[[httpx.AsyncClient], Any], load: bool = True,
    raising: bool = True,
) -> Any:  # fmt: skip
    service = Service(where.settings(**settings))
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
