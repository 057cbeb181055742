"""Decoding uploads in two lanes, and encoding the images that are sent out.

Most uploads are decoded on every core, the few that need much work apart from them, and behind them. So an ordinary
picture does not wait for those that take seconds of a core each, however many are sent. What is sent out is decoded and
encoded anew, so that nothing of the file goes along but the pixels.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from lookalike.api import guard, problems
from lookalike.api.problems import Problem, retry
from lookalike.collection import thumbnails
from lookalike.collection.journal import Journal
from lookalike.collection.snapshot import State
from lookalike.images import previews
from lookalike.images.decode import ImageError
from lookalike.images.decoder import Decoders, TooSlowError

T = TypeVar("T")
Run = Callable[..., Any]  # a function and its arguments -> what it returns; see lookalike.images.decoder.Decoder.run


class Lane:
    """A lane: some decoder processes, and a thread for each."""

    def __init__(self, count: int, most: int, nice: int = 0) -> None:
        """Start no process yet.

        most  pictures under way and waiting; one more is turned away.
        nice  by how much everything else on the machine comes first.
        """
        self._decoders, self._threads = Decoders(count, nice), ThreadPoolExecutor(count, "decode")
        self._most, self._taken = most, 0

    async def run(self, work: Callable[[Run], T], seconds: float) -> T:
        """Run work in a thread with a decoder, which is stopped after so many seconds.

        Raises Problem for a picture that is not accepted, took too long, or found no place.
        """
        self.check()
        deadline, begun = time.monotonic() + seconds, threading.Event()

        def decode() -> T:
            with self._decoders.one() as decoder:
                begun.set()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError  # nobody waits for it any more
                return work(partial(decoder.run, patience=left))

        self._taken += 1
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._threads, decode), seconds)
        except TooSlowError as error:
            raise Problem(problems.TOO_SLOW, str(error)) from None
        except TimeoutError:
            if begun.is_set():
                raise Problem(problems.TOO_SLOW, f"decoding took more than {seconds:g} seconds") from None
            raise _full() from None
        except guard.LaboriousError:
            raise
        except guard.RefusedError as error:
            raise Problem(problems.BY_NAME[error.kind], str(error)) from None
        except ImageError as error:
            raise Problem(problems.BROKEN_IMAGE, str(error)) from None
        finally:
            self._taken -= 1

    def check(self) -> None:
        """Raise Problem where no place is free."""
        if self._taken >= self._most:
            raise _full()

    def close(self) -> None:
        """Finish the pictures that are being decoded."""
        self._threads.shutdown(cancel_futures=True)
        self._decoders.close()


def _full() -> Problem:
    return retry(problems.QUEUE_FULL, "too many pictures are being decoded; try again")


@dataclass(frozen=True)
class Stored:
    """An original: how to read it, and a version that changes when its bytes do."""

    version: str
    read: Callable[[], bytes]

    def tag(self, side: int | None) -> str:
        """Make the ETag of a picture of at most so many pixels a side."""
        return f'"{hashlib.sha256(f"{self.version} {side}".encode()).hexdigest()[:32]}"'


@dataclass(frozen=True)
class Picture:
    """An encoded image."""

    content: bytes
    media_type: str
    tag: str


def stored(state: State, journal: Journal, row: int, folder: Path) -> Stored:
    """Find the original of a row: an added one in the journal, any other in the folder of originals, never outside.

    folder  of originals, or of a bundle's thumbnails, which then stand for them.
    """
    count = len(state.names.paths)
    if row >= count:
        digest = state.events[row - count].image
        return Stored(digest, lambda: journal.image(digest))
    if (folder / thumbnails.FILE).is_file():  # a bundle's: all the pictures there are
        name, made = state.path_and_label(row)[0], (folder / thumbnails.FILE).stat()
        version = f"{made.st_mtime_ns} {made.st_ino}"
        return Stored(f"{name} {version}", lambda: _bundled(folder, version)(name))
    inside = folder.resolve()
    path = (inside / state.path_and_label(row)[0]).resolve()
    if not path.is_relative_to(inside) or not path.is_file():
        raise Problem(problems.NO_ORIGINAL, "the image is in the index, but its file is not on this machine")
    status = path.stat()
    return Stored(f"{path} {status.st_mtime_ns} {status.st_size} {status.st_ino}", path.read_bytes)


@lru_cache(4)
def _bundled(folder: Path, version: str) -> Callable[[str], bytes]:
    """Open a bundle's pictures, verified once, and again when another file has taken their place."""
    return thumbnails.reader(folder)


def rendered(found: Stored, side: int | None, max_pixels: int, run: Run) -> Picture:
    """Decode an original and encode it anew; see lookalike.images.previews.copy. `run` runs that in a decoder."""
    try:
        content, media_type = run(previews.copy, found.read(), side, max_pixels)
    except TooSlowError:
        raise
    except (ImageError, OSError, thumbnails.Missing):
        raise Problem(problems.NO_ORIGINAL, "the image is in the index, but its file cannot be decoded") from None
    return Picture(content, media_type, found.tag(side))
