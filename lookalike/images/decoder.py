"""Decoding in other processes, so that it can be stopped.

A picture that takes more than 5 seconds of a core, crashes its decoder or needs too much memory becomes an ImageError;
a new process takes the place of the one that it ended, and other pictures are decoded as ever.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from queue import LifoQueue
from typing import IO, Any, TypeVar, cast

from lookalike.base.errors import LookalikeError
from lookalike.base.machine import cores
from lookalike.images import decoder_process
from lookalike.images.decode import ImageError

SECONDS = 5.0  # of a core, for one picture
# Of the clock, likewise: the only limit on Windows, which counts no seconds of a core; elsewhere for a decoder that
# hangs, and far above SECONDS, as a busy machine may give it a small share of a core.
PATIENCE = 600.0 if decoder_process.LIMITS else SECONDS

T = TypeVar("T")


class TooSlowError(ImageError):
    """Decoding took too long, and was stopped."""


class Decoder:
    """A process that decodes, started when it is needed, and anew after its death. For one thread at a time.

    It is given functions by name: it imports the module that has them, and what that imports.
    """

    def __init__(self, nice: int = 0) -> None:
        self._nice = nice
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def start(self) -> None:
        """Start the process, unless it runs. Does not wait for it."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        # -P and sys.path: it finds the modules that this process does, and none in the folder that we happen to be in.
        command = [sys.executable, "-P", "-m", decoder_process.__name__, str(self._nice)]
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
        environment = {**os.environ, "PYTHONPATH": path}
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._ready = False

    def run(self, work: Callable[..., T], *job: Any, patience: float = PATIENCE) -> T:
        """Return work(*job). Raises what it raises, and ImageError where the process was stopped or died.

        patience  seconds of the clock after which it is stopped, at most PATIENCE.
        """
        (result,) = self.each(work, [job], patience)
        if isinstance(result, ImageError):
            raise result
        return result

    def each(
        self, work: Callable[..., T], jobs: Sequence[tuple[Any, ...]], patience: float = PATIENCE
    ) -> Iterator[T | ImageError]:
        """Yield work(*job), or the ImageError that came of it, for each job in order. Raises any other exception."""
        asked = None  # the process that has been sent the jobs that are left
        try:
            for number in range(len(jobs)):
                if asked is None or asked is not self._process:
                    asked = self._wait_until_ready()
                    request = work, jobs[number:], SECONDS, min(patience, PATIENCE)
                else:
                    request = None
                well, result = self._exchange(asked, request, min(patience, PATIENCE))
                if not well and not isinstance(result, ImageError):
                    raise result
                yield result
        except BaseException:  # also where the results that are left are not wanted
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
        self.close()

    def close(self) -> None:
        """Let the process end, and wait for it."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(OSError):  # it may have died before it had read everything
                _input(process).close()
            process.wait()
            _output(process).close()

    def _wait_until_ready(self) -> "subprocess.Popen[bytes]":
        self.start()
        process = cast("subprocess.Popen[bytes]", self._process)
        if not self._ready:
            try:
                pickle.load(_output(process))  # noqa: S301
            except (EOFError, pickle.UnpicklingError):
                raise LookalikeError(
                    f"{decoder_process.__name__} ended as it began, exit status {process.wait()}; its error is above"
                ) from None
            self._ready = True
        return process

    def _exchange(self, process: "subprocess.Popen[bytes]", request: object, patience: float) -> tuple[bool, Any]:
        """Send a request, if there is one, and return the next answer."""
        begun, watch = time.monotonic(), threading.Timer(patience, process.kill)
        if not decoder_process.LIMITS:
            watch.start()
        try:
            with suppress(OSError):  # it died meanwhile; of what, its exit status says
                if request is not None:
                    pickle.dump(request, _input(process), pickle.HIGHEST_PROTOCOL)
                    _input(process).flush()
            answer: tuple[bool, Any] = pickle.load(_output(process))  # noqa: S301
        except (EOFError, pickle.UnpicklingError):
            self.close()
            late = not decoder_process.LIMITS and time.monotonic() - begun >= patience
            return False, _death(process.wait(), patience, late)
        finally:
            watch.cancel()
        return answer


def _input(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    return cast(IO[bytes], process.stdin)


def _output(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    return cast(IO[bytes], process.stdout)


def _death(status: int, patience: float, late: bool) -> ImageError:
    """What a process died of: one of the limits, or a crash; the same for a picture in every run."""
    if decoder_process.LIMITS and status == -signal.SIGPROF:
        return TooSlowError(f"decoding took more than {SECONDS:g} seconds of a core")
    if late or (decoder_process.LIMITS and status == -signal.SIGALRM):
        return TooSlowError(f"decoding took more than {patience:.0f} seconds")
    return ImageError(f"its decoder died ({'signal' if status < 0 else 'exit status'} {abs(status)})")


class Decoders:
    """Some decoders, for any number of threads, which wait for one another where they are more."""

    def __init__(self, count: int, nice: int = 0) -> None:
        self._all = [Decoder(nice) for _ in range(count)]
        self._idle: LifoQueue[Decoder] = LifoQueue()  # the last used first: no more are started than are needed
        for decoder in self._all:
            self._idle.put(decoder)

    @contextmanager
    def one(self) -> Iterator[Decoder]:
        """Yield a decoder that no other thread has."""
        decoder = self._idle.get()
        try:
            yield decoder
        finally:
            self._idle.put(decoder)

    def run(self, work: Callable[..., T], *job: Any) -> T:
        """Have one of them run work(*job); see Decoder.run."""
        with self.one() as decoder:
            return decoder.run(work, *job)

    def start(self) -> None:
        """Start the process of one, without waiting for it."""
        with self.one() as decoder:
            decoder.start()

    def close(self) -> None:
        """End the processes, which must be idle."""
        for decoder in self._all:
            decoder.close()


@cache
def shared() -> Decoders:
    """The decoders of this process, one a core; they end with it."""
    return Decoders(cores())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared.cache_clear)  # a fork has its parent's pipes, but must not use them
