"""Limits of time for what may hang: they grow with how slow this machine is, so that slowness alone fails nothing."""

import time
from collections.abc import Callable
from functools import cache

NOMINAL = 0.2  # seconds of `_reference` on an idle core of the machine on which the limits were chosen
Clock = Callable[[], float]


def patience(seconds: float, clock: Clock = time.perf_counter) -> float:
    """Seconds to wait for what takes a fraction of them before it is taken to hang: more here, if this machine is slow.

    clock  time.process_time for a limit in seconds of a core, which does not grow because others use the core too.
    """
    return seconds * slowness(clock)


@cache
def slowness(clock: Clock) -> float:
    """How many times as long as where the limits were chosen a computation takes here and now; 1 or more."""
    began = clock()
    _reference()
    return max(1.0, (clock() - began) / NOMINAL)


def _reference() -> int:
    return sum(number * number % 7 for number in range(3_000_000))
