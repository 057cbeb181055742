"""The decoding process: reads jobs from standard input, answers on standard output, and ends when its input ends.

lookalike/images/decoder.py starts it. A signal ends it when a picture takes too long, even inside a C library.
"""

import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

from PIL import Image

from lookalike.images.decode import ImageError

LIMITS = hasattr(signal, "setitimer")  # False on Windows, where the parent watches the clock instead


def main(nice: int) -> None:
    """Answer until the input ends: first one message that the process is ready, then one result per picture."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent ends this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps prints of a library out of the answers
    if nice and hasattr(os, "nice"):
        os.nice(nice)
    warnings.simplefilter("ignore")  # Pillow warns of odd metadata, 65,000 times for a hostile file
    Image.init()  # imports the readers of all formats now, 15 ms that the first picture need not wait for
    _send(answers, None)
    while True:
        try:
            work, jobs, seconds, patience = pickle.load(sys.stdin.buffer)  # noqa: S301  written by the parent
        except EOFError:
            return
        for job in jobs:
            _limit(seconds, patience)
            result = _result(work, job)
            _limit(0, 0)
            _send(answers, result)


def _result(work: Callable[..., Any], job: tuple[Any, ...]) -> tuple[bool, Any]:
    """Return whether `work` succeeded, and what it returned or raised."""
    try:
        return True, work(*job)
    except MemoryError:
        return False, ImageError("its decoder ran out of memory")
    except Exception as error:
        return False, error


def _limit(seconds: float, patience: float) -> None:
    """Make a signal end this process after `seconds` of processor time or `patience` of wall-clock time; 0 is never."""
    if LIMITS:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, patience)


def _send(answers: Any, message: object) -> None:
    pickle.dump(message, answers, protocol=pickle.HIGHEST_PROTOCOL)
    answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
