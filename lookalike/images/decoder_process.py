"""The process that decodes: reads work from standard input, answers on standard output, and ends when its input does.

lookalike/images/decoder.py starts it. A picture that takes too much of a core ends it, inside a C library too.
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

LIMITS = hasattr(signal, "setitimer")  # not on Windows, where the parent watches the clock instead


def main(nice: int) -> None:
    """Answer until the input ends: first that the process is ready, then one result a picture, as they come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent ends this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    if nice and hasattr(os, "nice"):
        os.nice(nice)
    warnings.simplefilter("ignore")  # Pillow's, of a picture's metadata; a hostile one has 65,000
    Image.init()  # imports the readers of all formats, 15 ms which the first picture need not wait for
    _send(answers, None)
    while True:
        try:
            work, jobs, seconds, patience = pickle.load(sys.stdin.buffer)  # noqa: S301  from the parent
        except EOFError:
            return
        for job in jobs:
            _limit(seconds, patience)
            result = _result(work, job)
            _limit(0, 0)
            _send(answers, result)


def _result(work: Callable[..., Any], job: tuple[Any, ...]) -> tuple[bool, Any]:
    """Whether all went well, and what the work returned or raised."""
    try:
        return True, work(*job)
    except MemoryError:
        return False, ImageError("its decoder ran out of memory")
    except Exception as error:
        return False, error


def _limit(seconds: float, patience: float) -> None:
    """Have a signal end this process after so many more seconds of a core, or of the clock; 0 for never."""
    if LIMITS:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, patience)


def _send(answers: Any, message: object) -> None:
    pickle.dump(message, answers, protocol=pickle.HIGHEST_PROTOCOL)
    answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
