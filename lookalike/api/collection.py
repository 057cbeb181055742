"""The collection that a server asks: here where that is brief, else in a thread; anew where its index was rebuilt."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from lookalike.api import problems
from lookalike.api.asking import Askers, Brief
from lookalike.api.problems import Problem, retry
from lookalike.api.settings import Settings
from lookalike.base.errors import LookalikeError
from lookalike.base.machine import cores
from lookalike.collection.collection import Gallery
from lookalike.collection.live_index import Rebuilt
from lookalike.collection.picture_search import Pictures
from lookalike.refinement.faiss_setup import faiss

T = TypeVar("T")


class ServedCollection:
    """One collection, open, and the threads that ask it."""

    def __init__(self, settings: Settings, tell: Callable[[str], None]) -> None:
        """Take where it lies; `open` opens it."""
        self._settings, self._tell = settings, tell
        self._reopening = threading.Lock()

    def open(self) -> None:
        """Open the index. Raises LookalikeError for what an operator has to mend."""
        alone()  # questions are asked in this thread too
        self._pictures = self._open()
        self._askers, self._brief = Askers(cores(), "ask", alone), Brief()

    def close(self) -> None:
        """Finish what is under way."""
        self._askers.close()

    @property
    def gallery(self) -> Gallery:
        """The collection as it was opened last."""
        return self._pictures.gallery

    async def ask(self, question: Callable[[Gallery], T], pool: Askers | None = None) -> T:
        """Ask: here where that is brief, in a thread otherwise; in one of `pool`, if that is given, always."""
        if pool is not None:
            return await pool(lambda: self._asked(question))
        if self._brief.enough():
            try:
                return self._timed(lambda: question(self.gallery))
            except Rebuilt:  # to open the new one is not brief
                pass
            except LookalikeError as error:
                raise self.unavailable(error) from None
        return await self._askers(lambda: self._timed(lambda: self._asked(question)))

    def unavailable(self, error: LookalikeError) -> Problem:
        """What a client hears of an error that it did not make."""
        self._tell(str(error))  # it names files, which are the operator's to know
        return retry(problems.UNAVAILABLE, "the collection cannot be asked now; the server's log says why")

    def _open(self) -> Pictures:
        return Pictures(self._settings.index, self._settings.model, self._settings.changes, self._tell)

    def _timed(self, ask: Callable[[], T]) -> T:
        start = time.thread_time()
        try:
            return ask()
        finally:
            self._brief.seen(time.thread_time() - start)

    def _asked(self, question: Callable[[Gallery], T]) -> T:
        """Ask the collection, which is opened anew where its index was rebuilt."""
        try:
            opened = self._pictures
            try:
                return question(opened.gallery)
            except Rebuilt:
                with self._reopening:
                    if self._pictures is opened:
                        self._pictures, self._brief = self._open(), Brief()
                return question(self.gallery)
        except LookalikeError as error:
            raise self.unavailable(error) from None


def alone() -> None:
    """Let this thread compare without helpers, which would wait for its next question at a core's full speed."""
    faiss.omp_set_num_threads(1)
