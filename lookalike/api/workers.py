"""Work in turn: places for requests with a picture, threads that ask, and the one that embeds.

A question that takes less time than a hop to a thread and back is asked in the event loop. Questions that do hop share
the way back: what a thread finishes within a millisecond is handed back together.

Pictures that arrive together are embedded together: one thread, which takes all that wait, up to a number. A vector has
the same bits whatever company it was embedded in (tests/test_api.py), so nobody's hits depend on it.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np

from lookalike.api import problems
from lookalike.api.metrics import Metrics
from lookalike.api.problems import retry
from lookalike.artifacts.descriptions import Embedding
from lookalike.runtimes.registry import Embedder

T = TypeVar("T")
HELD_MOST = 512_000_000  # bytes of uploads in memory at one time
TOGETHER = 0.001  # seconds that a result may wait for others
PATIENCE = 0.005  # seconds that a batch waits: for pictures that are being decoded, or for as many as came last time
Work = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class Place:
    """A place among the requests under way, and what it holds in memory."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take, self.held = take, 0

    def holds(self, count: int) -> None:
        """Say that so many more bytes have arrived; raises Problem where all uploads together are too many."""
        self._take(count)
        self.held += count


class Admission:
    """The places; touched by the event loop only."""

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


class Brief:
    """Whether questions are short enough to be asked in the event loop: a network's thread waits for none of them.

    >>> brief = Brief()
    >>> brief.enough()  # not known yet
    False
    >>> brief.seen(0.0002)
    >>> brief.enough()
    True
    >>> brief.seen(0.02)  # once is enough to go on in threads, for the next fifty
    >>> brief.enough()
    False
    """

    MOST = 0.001  # seconds of a core
    DECAY = 0.95  # what is left of the longest with each that is shorter

    def __init__(self) -> None:
        self._longest = float("inf")

    def enough(self) -> bool:
        """Whether the last ones were."""
        return self._longest < self.MOST

    def seen(self, seconds: float) -> None:
        """Hear of one."""
        faded = self._longest * self.DECAY if self._longest != float("inf") else 0.0
        self._longest = max(seconds, faded)


class Askers:
    """Some threads that take work in the order it comes."""

    def __init__(self, count: int, name: str, start: Callable[[], None]) -> None:
        """Begin `count` threads, each with a call of `start`."""
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, args=[start], name=f"{name} {number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    async def __call__(self, work: Callable[[], T]) -> T:
        """Have a thread do it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._work.put((work, future, loop))
        return await future

    def close(self) -> None:
        """Finish what waits."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, start: Callable[[], None]) -> None:
        start()
        while item := self._work.get():
            loop = item[2]
            done: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
            limit = time.perf_counter() + TOGETHER
            while item:
                done.append(_done(item))
                if time.perf_counter() > limit:
                    break
                try:
                    item = self._work.get_nowait()
                except Empty:
                    break
            loop.call_soon_threadsafe(_deliver, done)
            if item is None:
                return


def _done(item: Work) -> tuple["asyncio.Future[Any]", Any, BaseException | None]:
    try:
        return item[1], item[0](), None
    except BaseException as error:  # it is whoever asked that must hear of it
        return item[1], None, error


def _deliver(done: list[tuple["asyncio.Future[Any]", Any, BaseException | None]]) -> None:
    for future, result, error in done:
        if not future.done():  # its asker may have given up
            if error:
                future.set_exception(error)
            else:
                future.set_result(result)


@dataclass(frozen=True)
class Waiting:
    """A picture, uint8 (S, S, 3), and where its embedding, float32 (D,), goes."""

    embedding: Embedding
    pixels: np.ndarray
    result: "Future[np.ndarray]"


class Batcher:
    """One thread that embeds."""

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
        """Have a picture embedded, or, without pixels, the network loaded."""
        waiting = Waiting(embedding, pixels, Future())
        with self._change:
            self._waiting.append(waiting)
            self._change.notify()
        return waiting.result

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Say that a picture is about to come."""
        with self._change:
            self._decoding += 1
        try:
            yield
        finally:
            with self._change:
                self._decoding -= 1
                self._change.notify()

    def close(self) -> None:
        """Embed what waits, then end."""
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
        """Whether there is nobody to wait for. Who asks one by one never waits; several in turn keep together."""
        return len(self._waiting) >= self._most or (not self._decoding and len(self._waiting) >= self._last)

    def _network_of(self, embedding: Embedding) -> Embedder:
        if self._network is None or self._network[0] != embedding:
            self._network = None  # frees it before the next is loaded
            self._network = embedding, self._load(embedding)
        return self._network[1]
