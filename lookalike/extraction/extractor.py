"""Embedding N images: what is known from the cache, the rest through a network, in memory that does not grow with N."""

import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from lookalike.artifacts.descriptions import DESCRIPTION_FILE, describe
from lookalike.base import script
from lookalike.base.files import file_digest
from lookalike.base.params import UNUSED
from lookalike.extraction.batch_size import fastest as batch_size_of
from lookalike.extraction.cache import EmbeddingCache, Recipe
from lookalike.extraction.company import Company, Composer, company_of
from lookalike.runtimes import registry
from lookalike.runtimes.code_digest import code_digest

AHEAD = 3  # blocks that are read while the network is busy


class Extractor:
    """A network, a runtime and a cache: pixels in, rows out."""

    def __init__(
        self, runtime: registry.Choice, folder: Path, image_size: int, batch_size: int, precision: registry.Precision,
        calibration: Path = Path(UNUSED),
    ) -> None:  # fmt: skip
        """Describe how images of `image_size` pixels are embedded; the network is loaded when it is needed.

        folder       the network files.
        batch_size   0 to try which is fastest.
        calibration  what int8 is calibrated on.
        """
        self._run = registry.runtime(registry.chosen(runtime, precision))
        self._folder, self._calibration = folder, calibration
        self._embedder: registry.Embedder | None = None
        network = describe(folder)
        code = (*self._run.CODE, "runtimes/quantization.py") if precision == "int8" else self._run.CODE
        self.recipe = Recipe(
            backbone=network.backbone,
            layer=network.layer,
            pooling=network.pooling,
            network=_digest([folder / name for name in (*self._run.NETWORK_FILES, DESCRIPTION_FILE)]),
            image_size=image_size,
            runtime=self._run.version(precision, network.backbone),
            precision=precision,
            batch_size=batch_size,
            calibration=file_digest(calibration) if precision == "int8" and calibration.is_file() else "",
            code=code_digest(code),
            processor=self._run.device(),
            dim=network.dim,
        )
        if batch_size == 0:
            self.recipe = replace(self.recipe, batch_size=batch_size_of(self.recipe, self._load))

    def network(self) -> registry.Embedder:
        """The network, loaded once, for full batches."""
        if self._embedder is None:
            self._embedder = self._load(self.recipe.batch_size)
        return self._embedder

    def embed(
        self,
        blocks: Iterable[np.ndarray],
        write: Callable[[np.ndarray, np.ndarray], None],
        progress: Callable[[int, int], None] = lambda rows, known: None,
    ) -> None:
        """Embed blocks of images as `embed` does, with the user's cache."""
        with EmbeddingCache(self.recipe, _tell_once) as cache:
            embed(blocks, self.network, self.recipe.batch_size, cache, write, progress, self._company)

    def _company(self, network: registry.Embedder) -> Company:
        company = company_of(self.recipe, network)
        if company != "any":
            _tell_once(
                f"{self.recipe.runtime}: the last bits of an embedding depend on its place in a batch on this "
                "processor, so each image keeps one place"
            )
        return company

    def _load(self, batch_size: int) -> registry.Embedder:
        recipe = self.recipe
        precision = cast(registry.Precision, recipe.precision)
        return self._run.load(self._folder, recipe.image_size, batch_size, precision, self._calibration)


@lru_cache
def _tell_once(message: str) -> None:
    script.notice("extract", message)


def embed(
    blocks: Iterable[np.ndarray],
    load: Callable[[], registry.Embedder],
    batch_size: int,
    cache: EmbeddingCache,
    write: Callable[[np.ndarray, np.ndarray], None],
    progress: Callable[[int, int], None] = lambda rows, known: None,
    company: Callable[[registry.Embedder], Company] = lambda network: "any",
) -> None:
    """Embed images, each once: those that the cache knows, and those whose pixels occurred before, are not run again.

    blocks    uint8, (b, S, S, 3) each, in order; read, and hashed, while the network works.
    load      returns the network for batches of `batch_size`; called when an image is first found to be unknown.
    write     takes row numbers, int64 (n,), and their embeddings, float32 (n, D); rows come out of order. What it
              raises ends the work, and the embeddings it was given are not kept.
    progress  is told of n more rows, and how many of them needed no network.
    company   says of a network in which company an image's embedding is always the same.

    A batch always has `batch_size` images, black ones where there are no others, because a network compiled for another
    batch shape may differ in the last bits.
    """
    pipeline = _Pipeline(load, batch_size, cache, write, progress, company)
    first = 0
    with pipeline, closing(_ahead(_hashed(blocks))) as hashed:
        for pixels, keys in hashed:
            pipeline.collected.clear()
            known = cache.get(keys)
            found = [number for number, key in enumerate(keys) if key in known]
            if found:
                write(first + np.array(found), np.stack([known[keys[number]] for number in found]))
                progress(len(found), len(found))
            unknown: dict[bytes, list[int]] = {}
            for number, key in enumerate(keys):
                if key not in known:
                    unknown.setdefault(key, []).append(number)
            for key, numbers in unknown.items():
                pipeline.add(key, pixels[numbers[0]], [first + number for number in numbers])
            first += len(keys)
        pipeline.finish()


@dataclass
class _Batch:
    places: dict[bytes, int] = field(default_factory=dict)  # key: where in the batch the image is
    rows: dict[bytes, list[int]] = field(default_factory=dict)  # key: the rows that want this embedding
    result: Future[np.ndarray] | None = None  # (B, D)


class _Pipeline:
    """Fill a batch while the network works on the one before, and write that one's rows while it works on the next."""

    def __init__(
        self,
        load: Callable[[], registry.Embedder],
        batch_size: int,
        cache: EmbeddingCache,
        write: Callable[[np.ndarray, np.ndarray], None],
        progress: Callable[[int, int], None],
        company: Callable[[registry.Embedder], Company],
    ) -> None:
        self._load, self._batch_size, self._cache, self._write = load, batch_size, cache, write
        self._progress, self._company = progress, company
        self._network: registry.Embedder | None = None
        self._composer: Composer | None = None
        self._waiting: dict[bytes, tuple[np.ndarray, list[int]]] = {}  # key: pixels (S, S, 3), and rows that want them
        self._running = _Batch()
        self._device, self._disk = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._kept: Future[None] = self._disk.submit(lambda: None)
        self.collected: dict[bytes, np.ndarray] = {}  # what came out since the cache was last asked

    def add(self, key: bytes, pixels: np.ndarray, rows: list[int]) -> None:
        """Take an image that the cache did not know; a twin of one under way waits for that one's embedding."""
        if key in self.collected:
            self._write(np.array(rows), np.repeat(self.collected[key][np.newaxis], len(rows), axis=0))
            self._progress(len(rows), len(rows))
        elif key in self._running.rows:
            self._running.rows[key] += rows
        elif key in self._waiting:
            self._waiting[key][1].extend(rows)
        else:
            composer = self._composing()
            self._waiting[key] = pixels.copy(), rows  # a copy, or it would hold its whole block in memory
            composer.add(key)
            if composer.ready():
                self._start(composer)

    def finish(self) -> None:
        """Embed and write what is left."""
        while self._composer and self._waiting:
            self._start(self._composer)
        self._collect(self._running)
        self._running = _Batch()
        self._kept.result()
        self._cache.commit()

    def _composing(self) -> Composer:
        if self._composer is None:
            self._network = self._load()
            self._composer = Composer(self._company(self._network), self._batch_size)
        return self._composer

    def _start(self, composer: Composer) -> None:
        assert self._network is not None  # noqa: S101  a composer comes with it
        places = composer.take()
        taken = {key: self._waiting.pop(key) for key in places}
        shape = next(iter(taken.values()))[0].shape
        whole = np.zeros((self._batch_size, *shape), np.uint8)  # (B, S, S, 3)
        for key, (pixels, _) in taken.items():
            whole[places[key]] = pixels
        batch = _Batch(places, {key: rows for key, (_, rows) in taken.items()})
        batch.result = self._device.submit(self._network, whole)
        before, self._running = self._running, batch
        self._collect(before)

    def _collect(self, batch: _Batch) -> None:
        if batch.result is None:
            return
        result = batch.result.result()[list(batch.places.values())]  # (b, D)
        rows = np.array([row for wanted in batch.rows.values() for row in wanted])
        self._write(rows, np.repeat(result, [len(wanted) for wanted in batch.rows.values()], axis=0))
        for key, row in zip(batch.rows, result, strict=True):
            self._cache.put(key, row)
            self.collected[key] = row
        self._kept.result()  # raises what writing the cache raised
        self._kept = self._disk.submit(self._cache.commit, now=False)
        self._progress(len(rows), len(rows) - len(batch.rows))

    def __enter__(self) -> "_Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self._device.shutdown(cancel_futures=True)
        self._disk.shutdown()


def _hashed(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, list[bytes]]]:
    for pixels in blocks:
        yield pixels, [hashlib.sha256(image.data).digest() for image in pixels]


def _ahead(items: Iterator[Any]) -> Generator[Any]:
    """Draw from an iterator in a thread, a few items ahead; what it raises is raised here."""
    drawn: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(AHEAD)
    done = object()
    stopped = threading.Event()

    def draw() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                drawn.put((item, None))
                if stopped.is_set():
                    return
        except BaseException as raised:
            error = raised
        drawn.put((done, error))

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        while True:
            item, error = drawn.get()
            if error:
                raise error
            if item is done:
                return
            yield item
    finally:
        stopped.set()
        while thread.is_alive():  # it may wait for room
            with suppress(queue.Empty):
                drawn.get(timeout=0.05)


def _digest(files: list[Path]) -> str:
    """SHA-256 over files' names and contents."""
    return hashlib.sha256("".join(f"{file.name} {file_digest(file)}\n" for file in files).encode()).hexdigest()
