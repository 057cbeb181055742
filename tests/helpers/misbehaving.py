"""What decoders are made to run by tests: well-behaved work, and work that takes too long, crashes or prints."""

import os
import re
import signal
import time
from pathlib import Path


def double(number: int) -> int:
    """Work that goes well."""
    return 2 * number


def burn(number: int) -> int:
    """Use a core for ever, in Python."""
    while True:
        number += 1


def burn_in_c(number: int) -> None:
    """Use a core for ever, in C: no signal handler of Python's would run meanwhile."""
    re.match(r"(a+)+$", "a" * 60 + "b" * number)


def wait(seconds: float) -> None:
    """Use no core."""
    time.sleep(seconds)


def hang(_: int) -> None:
    """Wait for ever, whatever limit of the clock the process has set itself."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    time.sleep(3600)


def crash(_: int) -> None:
    """Die as a decoder with a fault does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def chatter(number: int) -> int:
    """Print, as libraries do."""
    print("not an answer", flush=True)
    os.write(1, b"nor this")
    return number


def exhaust(_: int) -> None:
    """Need more memory than there is."""
    raise MemoryError


def fail(_: int) -> None:
    """Have a fault of ours."""
    raise ZeroDivisionError("a fault of ours")


def any_of(name: str, number: int) -> object:
    """One of these, by its name."""
    return globals()[name](number)


def memory(_: int) -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
