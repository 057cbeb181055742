"""Threads for short work, and none at all for the shortest.

A hop to a thread and back costs as much as a small search, so a question that takes less than that is asked where it
comes from. Those that do hop share the way back: what a thread finishes within a millisecond is handed back at once.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
TOGETHER = 0.001  # seconds that a result may wait for others
Work = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


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
