"""How many requests with a picture may be under way, and how many bytes of uploads they may hold together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lookalike.api import problems
from lookalike.api.metrics import Metrics
from lookalike.api.problems import retry

HELD_MOST = 512_000_000  # bytes of uploads in memory at one time


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
