"""Embedding of N images, from the cache or through a network, in memory that does not grow with N."""

import hashlib
import logging
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
from lookalike.base.files import file_digest
from lookalike.base.params import UNUSED
from lookalike.extraction.batch_size import fastest as batch_size_of
from lookalike.extraction.cache import EmbeddingCache, Recipe
from lookalike.extraction.company import Company, Composer, company_of
from lookalike.runtimes import registry
from lookalike.runtimes.code_digest import code_digest

logger = logging.getLogger(__name__)

AHEAD = 3  # blocks read in advance while the network is busy


class Extractor:
    """A network with its runtime and cache, which turns pixels into embeddings."""

    def __init__(
        self,
        runtime: registry.Choice,
        folder: Path,
        image_size: int,
        batch_size: int,
        precision: registry.Precision,
        calibration: Path = Path(UNUSED),
    ) -> None:
        """Set up embedding of images of `image_size` pixels a side; the network is loaded when it is first needed.

        folder       folder of the network files.
        batch_size   images per batch; 0 to find the fastest.
        calibration  file of the images that int8 is calibrated on.
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
        """Return the network for batches of the recipe's size, loaded once."""
        if self._embedder is None:
            self._embedder = self._load(self.recipe.batch_size)
        return self._embedder

    def embed(
        self,
        blocks: Iterable[np.ndarray],
        write: Callable[[np.ndarray, np.ndarray], None],
        progress: Callable[[int, int], None] = lambda rows, known: None,
    ) -> None:
        """Embed blocks of images with the user's cache; the arguments are those of the function `embed`."""
        with EmbeddingCache(self.recipe) as cache:
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
    logger.info(message)


def embed(
    blocks: Iterable[np.ndarray],
    load: Callable[[], registry.Embedder],
    batch_size: int,
    cache: EmbeddingCache,
    write: Callable[[np.ndarray, np.ndarray], None],
    progress: Callable[[int, int], None] = lambda rows, known: None,
    company: Callable[[registry.Embedder], Company] = lambda network: "any",
) -> None:
    """Embed images, each at most once: cached images and repeated pixels do not go through the network.

    blocks    blocks of images in order, uint8 (b, S, S, 3); read and hashed while the network works.
    load      returns the network for batches of `batch_size`; called at the first image that is not in the cache.
    write     called with row numbers, int64 (n,), and their embeddings, float32 (n, D), not in row order. An exception
              that it raises ends the work, and the embeddings passed to it are not cached.
    progress  called with a number of finished rows, and how many of them did not go through the network.
    company   returns under which conditions the network's embedding of an image is always the same.

    A batch always has `batch_size` images and is filled up with black ones, because a network compiled for another
    batch shape may give other last bits.
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
    places: dict[bytes, int] = field(default_factory=dict)  # key: the image's place in the batch
    rows: dict[bytes, list[int]] = field(default_factory=dict)  # key: the rows of this image
    result: Future[np.ndarray] | None = None  # (B, D)


class _Pipeline:
    """Pipeline that fills the next batch, and writes the rows of the last one, while the network works."""

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
        self._waiting: dict[bytes, tuple[np.ndarray, list[int]]] = {}  # key: pixels (S, S, 3), and the image's rows
        self._running = _Batch()
        self._device, self._disk = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._kept: Future[None] = self._disk.submit(lambda: None)
        self.collected: dict[bytes, np.ndarray] = {}  # embeddings computed since the cache was last asked

    def add(self, key: bytes, pixels: np.ndarray, rows: list[int]) -> None:
        """Add an image that is not in the cache; one with the same pixels as an earlier one shares its embedding."""
        if key in self.collected:
            self._write(np.array(rows), np.repeat(self.collected[key][np.newaxis], len(rows), axis=0))
            self._progress(len(rows), len(rows))
        elif key in self._running.rows:
            self._running.rows[key] += rows
        elif key in self._waiting:
            self._waiting[key][1].extend(rows)
        else:
            composer = self._composing()
            self._waiting[key] = pixels.copy(), rows  # a copy, because a view would keep the whole block in memory
            composer.add(key)
            if composer.ready():
                self._start(composer)

    def finish(self) -> None:
        """Embed and write the remaining images."""
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
        assert self._network is not None  # noqa: S101  set together with the composer
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
        self._kept.result()  # raises the exception of the last commit, if any
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
    """Read an iterator in a thread, a few items ahead; its exceptions are raised here."""
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
        while thread.is_alive():  # it may be waiting for room in the queue
            with suppress(queue.Empty):
                drawn.get(timeout=0.05)


def _digest(files: list[Path]) -> str:
    """Return a hex SHA-256 over the files' names and contents."""
    return hashlib.sha256("".join(f"{file.name} {file_digest(file)}\n" for file in files).encode()).hexdigest()
