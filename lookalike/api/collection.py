"""The collection that a server asks, opened anew where its index was rebuilt, and problems where it cannot answer."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np

from lookalike.api import problems, schema
from lookalike.api.problems import Problem, retry
from lookalike.api.settings import Settings
from lookalike.base.errors import LookalikeError
from lookalike.base.machine import cores
from lookalike.collection.collection import Gallery, LabelError
from lookalike.collection.live_index import Rebuilt
from lookalike.collection.names import check_name
from lookalike.collection.picture_search import Pictures
from lookalike.collection.snapshot import State
from lookalike.index.tags import TextError
from lookalike.refinement.faiss_setup import faiss

logger = logging.getLogger(__name__)

NAME_MOST = 200  # characters of a name, a label
ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # suffixes by format; other formats have their name as suffix
T = TypeVar("T")


class ServedCollection:
    """An open collection, and the threads that search it."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; `open` opens the collection."""
        self._settings = settings
        self._reopening = threading.Lock()

    def open(self) -> None:
        """Open the index. Raises LookalikeError for what an operator has to mend."""
        alone()  # to carry changes over to another index is to compare
        self._pictures = self._open()
        self._threads = ThreadPoolExecutor(cores(), "ask", alone)

    def close(self) -> None:
        """Finish what is under way."""
        self._threads.shutdown()

    @property
    def gallery(self) -> Gallery:
        """The collection as it was opened last."""
        return self._pictures.gallery

    async def ask(self, question: Callable[[Gallery], T], threads: ThreadPoolExecutor | None = None) -> T:
        """Run a question in a thread: one of `threads`, or of those shared by all questions."""
        return await asyncio.get_running_loop().run_in_executor(threads or self._threads, self._asked, question)

    def unavailable(self, error: LookalikeError) -> Problem:
        """Make the problem for an error that the client did not cause, and tell the operator."""
        logger.error(str(error))  # it names files, which are the operator's to know
        return retry(problems.UNAVAILABLE, "the collection cannot be asked now; the server's log says why")

    def _open(self) -> Pictures:
        return Pictures(self._settings.index, self._settings.model, self._settings.changes)

    def _asked(self, question: Callable[[Gallery], T]) -> T:
        """Run a question; where the index was rebuilt, open the collection anew first."""
        try:
            opened = self._pictures
            try:
                return question(opened.gallery)
            except Rebuilt:
                with self._reopening:
                    if self._pictures is opened:
                        self._pictures = self._open()
                return question(self.gallery)
        except LookalikeError as error:
            raise self.unavailable(error) from None


def alone() -> None:
    """Turn OpenMP off in this thread: its helpers would keep cores busy while they wait for the next question."""
    faiss.omp_set_num_threads(1)


# --- whether it can answer --------------------------------------------------------------------------------------------


def known(state: State, item: str) -> str:
    """Find the path of an id. Raises Problem where the collection has none."""
    path = schema.path_of_id(item)
    if path is None or path not in state:
        raise Problem(problems.UNKNOWN_ITEM, "no image of the collection has this id; ids are as a search shows them")
    return path


def seen(gallery: Gallery, vector: np.ndarray) -> None:
    """Raise Problem for a picture that has no direction: all black, say."""
    try:
        gallery.refinement.project(vector[np.newaxis])
    except LookalikeError:
        raise Problem(
            problems.FEATURELESS, "the picture's embedding has no direction, so it has no similarity with anything"
        ) from None


def explained(error: LookalikeError) -> Exception:
    """Tell the client's mistakes, a class or words that no image has, from other errors."""
    return Problem(problems.INVALID, str(error)) if isinstance(error, LabelError | TextError) else error


def named_by_content(digest: str, kind: str) -> str:
    """Name a new image that came without a name: the hash of its bytes, and its format's suffix."""
    return digest[:32] + ENDINGS.get(kind, f".{kind.lower()}")


def path_of(label: str, name: str) -> str:
    """Make the path of a new image: its class, and the last part of its name. Raises Problem for an invalid one."""
    last = PurePosixPath(name.replace("\\", "/")).name
    path = f"{label}/{last}".removeprefix("/")
    if not path.isprintable() or len(os.fsencode(last)) > NAME_MOST:
        raise Problem(problems.INVALID, f"the name must be printable, and at most {NAME_MOST} bytes long")
    try:
        check_name(path, label)
    except LookalikeError as error:
        raise Problem(problems.INVALID, str(error)) from None
    return path
