"""Limits of time for what may hang: they grow with how slow this machine is, so that slowness alone fails nothing."""

import time
from functools import cache

NOMINAL = 0.25  # seconds of `_reference` on an idle core of the machine on which the limits were chosen


def patience(seconds: float) -> float:
    """Seconds to wait for what takes a fraction of them before it is taken to hang: more here, if this machine is slow.

    >>> patience(60) >= 60
    True
    """
    return seconds * slowness()


@cache
def slowness() -> float:
    """How many times as long as where the limits were chosen a computation takes here and now; 1 or more."""
    began = time.perf_counter()
    _reference()
    return max(1.0, (time.perf_counter() - began) / NOMINAL)


def _reference() -> int:
    return sum(number * number % 7 for number in range(3_000_000))
