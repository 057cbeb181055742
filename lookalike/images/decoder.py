"""Decoding in other processes, so that it can be stopped.

A picture that takes more than 5 seconds of processor time, crashes its decoder or needs too much memory becomes an
ImageError. A new process replaces the one that died, and other pictures are not affected.
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

SECONDS = 5.0  # processor time for one picture
# Wall-clock seconds for one picture. The only limit on Windows, where processor time cannot be limited. Elsewhere it
# stops a decoder that hangs, and is far above SECONDS because a busy machine may give a decoder little processor time.
PATIENCE = 600.0 if decoder_process.LIMITS else SECONDS

T = TypeVar("T")


class TooSlowError(ImageError):
    """Decoding that took too long and was stopped."""


class Decoder:
    """A decoding process, started when needed and restarted after it died. Not thread-safe.

    Functions are sent to it by name, so it imports the module that defines them.
    """

    def __init__(self, nice: int = 0) -> None:
        self._nice = nice
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def start(self) -> None:
        """Start the process unless it is running, without waiting until it is ready."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        # -P and sys.path: it imports from the same places as this process, and not from the current folder.
        command = [sys.executable, "-P", "-m", decoder_process.__name__, str(self._nice)]
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
        environment = {**os.environ, "PYTHONPATH": path}
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._ready = False

    def run(self, work: Callable[..., T], *job: Any, patience: float = PATIENCE) -> T:
        """Return work(*job). Raises the exceptions of `work`, and ImageError if the process was stopped or died.

        patience  wall-clock seconds after which the process is stopped, at most PATIENCE.
        """
        (result,) = self.each(work, [job], patience)
        if isinstance(result, ImageError):
            raise result
        return result

    def each(
        self, work: Callable[..., T], jobs: Sequence[tuple[Any, ...]], patience: float = PATIENCE
    ) -> Iterator[T | ImageError]:
        """Yield work(*job), or the ImageError that it raised, for each job in order. Raises any other exception."""
        asked = None  # the process that was sent the remaining jobs
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
        except BaseException:  # also GeneratorExit, when the caller does not want the remaining results
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
        self.close()

    def close(self) -> None:
        """Close the process's input, at which it ends, and wait for its end."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(OSError):  # it may have died before reading everything
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
                    f"{decoder_process.__name__} failed to start, exit status {process.wait()}; its error is above"
                ) from None
            self._ready = True
        return process

    def _exchange(self, process: "subprocess.Popen[bytes]", request: object, patience: float) -> tuple[bool, Any]:
        """Send a request, if there is one, and return the next answer."""
        begun, watch = time.monotonic(), threading.Timer(patience, process.kill)
        if not decoder_process.LIMITS:
            watch.start()
        try:
            with suppress(OSError):  # the process died; its exit status is looked at below
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
    """Return the ImageError for a dead process, one of the limits or a crash; the same for a picture in every run."""
    if decoder_process.LIMITS and status == -signal.SIGPROF:
        return TooSlowError(f"decoding took more than {SECONDS:g} seconds of a core")
    if late or (decoder_process.LIMITS and status == -signal.SIGALRM):
        return TooSlowError(f"decoding took more than {patience:.0f} seconds")
    return ImageError(f"its decoder died ({'signal' if status < 0 else 'exit status'} {abs(status)})")


class Decoders:
    """A pool of decoders for any number of threads; a thread waits while all are in use."""

    def __init__(self, count: int, nice: int = 0) -> None:
        self._all = [Decoder(nice) for _ in range(count)]
        self._idle: LifoQueue[Decoder] = LifoQueue()  # last in, first out: no more are started than needed
        for decoder in self._all:
            self._idle.put(decoder)

    @contextmanager
    def one(self) -> Iterator[Decoder]:
        """Yield a decoder that no other thread is using."""
        decoder = self._idle.get()
        try:
            yield decoder
        finally:
            self._idle.put(decoder)

    def run(self, work: Callable[..., T], *job: Any) -> T:
        """Run work(*job) in one of the decoders; see Decoder.run."""
        with self.one() as decoder:
            return decoder.run(work, *job)

    def start(self) -> None:
        """Start one decoder's process, without waiting until it is ready."""
        with self.one() as decoder:
            decoder.start()

    def close(self) -> None:
        """End all processes, which must be idle."""
        for decoder in self._all:
            decoder.close()


@cache
def shared() -> Decoders:
    """Return this process's decoders, one per core; they end with it."""
    return Decoders(cores())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared.cache_clear)  # a forked child must not use its parent's pipes
