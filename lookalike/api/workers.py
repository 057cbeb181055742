"""Limits on requests under way, and the thread that embeds pictures in batches.

Pictures that arrive together are embedded together, up to a number: at 8 connections /search gives 1.56 times as many
answers as at 1 (docs/deploy.md). A vector has the same bits whatever company it was embedded in (tests/api), so
nobody's hits depend on it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from lookalike.api import problems
from lookalike.api.metrics import Metrics
from lookalike.api.problems import retry
from lookalike.artifacts.descriptions import Embedding
from lookalike.runtimes.registry import Embedder

HELD_MOST = 512_000_000  # bytes of uploads in memory at one time
PATIENCE = 0.005  # seconds that a batch waits: for pictures that are being decoded, or for as many as came last time


class Place:
    """A place among the requests under way, and the bytes that it holds in memory."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take, self.held = take, 0

    def holds(self, count: int) -> None:
        """Count bytes that have arrived; raises Problem where all uploads together hold too many."""
        self._take(count)
        self.held += count


class Admission:
    """The places for requests under way; used by the event loop only."""

    def __init__(self, places: int, metrics: Metrics) -> None:
        self._places, self._metrics = places, metrics
        self._taken = self._held = 0

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Take a place for a picture; raises Problem where none is free."""
        if self._taken >= self._places:
            raise retry(problems.QUEUE_FULL, f"{self._taken} requests are under way; try again")
        self._taken += 1
        self._metrics.under_way.set(self._taken)
        place = Place(self._take)
        try:
            yield place
        finally:
            self._taken -= 1
            self._held -= place.held
            self._metrics.under_way.set(self._taken)

    def _take(self, count: int) -> None:
        if self._held + count > HELD_MOST:
            raise retry(problems.QUEUE_FULL, "too many bytes of uploads are in memory; try again")
        self._held += count


@dataclass(frozen=True)
class Waiting:
    """A picture, uint8 (S, S, 3), and where its embedding, float32 (D,), goes."""

    embedding: Embedding
    pixels: np.ndarray
    result: "Future[np.ndarray]"


class Batcher:
    """A thread that embeds pictures in batches."""

    def __init__(
        self,
        load: Callable[[Embedding], Embedder],
        most: int,
        seen: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        """Start the thread.

        load  gives the network of an embedding, for any number of pictures up to `most`.
        seen  is told of each batch: pictures, seconds.
        """
        self._load, self._most, self._seen = load, most, seen
        self._network: tuple[Embedding, Embedder] | None = None
        self._waiting: deque[Waiting] = deque()
        self._decoding, self._closed = 0, False
        self._last = 1  # pictures of the last batch
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="embed", daemon=True)
        self._thread.start()

    def submit(self, embedding: Embedding, pixels: np.ndarray) -> "Future[np.ndarray]":
        """Queue a picture to be embedded, or, without pixels, the network to be loaded."""
        waiting = Waiting(embedding, pixels, Future())
        with self._change:
            self._waiting.append(waiting)
            self._change.notify()
        return waiting.result

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Announce a picture, for which a batch may wait."""
        with self._change:
            self._decoding += 1
        try:
            yield
        finally:
            with self._change:
                self._decoding -= 1
                self._change.notify()

    def close(self) -> None:
        """Embed the pictures that wait, then end the thread."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            try:
                network = self._network_of(batch[0].embedding)
                pictures = [each for each in batch if each.pixels.size]
                if pictures:
                    start = time.perf_counter()
                    vectors = network(np.stack([each.pixels for each in pictures]))  # (B, D)
                    self._seen(len(pictures), time.perf_counter() - start)
                    for each, vector in zip(pictures, vectors, strict=True):
                        each.result.set_result(vector)
                for each in batch:
                    if not each.pixels.size:
                        each.result.set_result(np.zeros(0, np.float32))
            except Exception as error:  # whatever it is, those who wait must hear of it, and the next batch be tried
                for each in batch:
                    if not each.result.done():
                        each.result.set_exception(error)

    def _next(self) -> list[Waiting]:
        with self._change:
            while True:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                self._change.wait_for(self._together, PATIENCE)
                kind = self._waiting[0].embedding
                batch: list[Waiting] = []
                while self._waiting and self._waiting[0].embedding == kind and len(batch) < self._most:
                    waiting = self._waiting.popleft()
                    if waiting.result.set_running_or_notify_cancel():  # else nobody waits for it any more
                        batch.append(waiting)
                if batch:
                    self._last = len(batch)
                    return batch

    def _together(self) -> bool:
        """Say whether a batch is complete: full, or nothing is being decoded and as many wait as came last time."""
        return len(self._waiting) >= self._most or (not self._decoding and len(self._waiting) >= self._last)

    def _network_of(self, embedding: Embedding) -> Embedder:
        if self._network is None or self._network[0] != embedding:
            self._network = None  # frees it before the next is loaded
            self._network = embedding, self._load(embedding)
        return self._network[1]
