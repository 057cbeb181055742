"""What the server does, apart from HTTP: one collection, open, and threads that decode, embed, ask and change."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np

from lookalike import images
from lookalike.api import guard, ids, problems
from lookalike.api.asking import Askers
from lookalike.api.batching import Batcher
from lookalike.api.metrics import Metrics
from lookalike.api.problems import Problem, retry
from lookalike.api.served import Picture, Stored, rendered, stored
from lookalike.api.settings import Settings
from lookalike.datasets import Settings as Source
from lookalike.errors import LookalikeError
from lookalike.fa import faiss
from lookalike.folding import check_path
from lookalike.gallery import Gallery, Hit, Rebuilt, State
from lookalike.machine import cores
from lookalike.network import Embedding, check_same_network
from lookalike.pictures import Pictures
from lookalike.runtimes import Embedder, openvino

T = TypeVar("T")
ANYWHERE = Source.model_construct(dataset="caltech101")  # a path need not be of its class's folder
HELD_MOST = 512_000_000  # bytes of uploads in memory at one time
NAME_MOST = 200  # characters of a name, a label
ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # by content; of the others, the format's name


@dataclass(frozen=True)
class Item:
    """An image of the collection."""

    path: str
    label: str


class Admission:
    """A place among the requests under way, and what it holds in memory."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take, self.held = take, 0

    def holds(self, count: int) -> None:
        """Say that so many more bytes have arrived; raises Problem where all uploads together are too many."""
        self._take(count)
        self.held += count


class Service:
    """A collection, served."""

    def __init__(self, settings: Settings, tell: Callable[[str], None]) -> None:
        """Take what to serve; `open` opens it."""
        self.settings, self.metrics, self._tell = settings, Metrics(), tell
        self._pictures: Pictures | None = None
        self._reopening = threading.Lock()
        self._under_way = self._held = 0  # touched by the event loop only
        self.loaded = False

    # --- life ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the index, and start the threads. Raises LookalikeError for what an operator has to mend."""
        self._pictures = self._open()
        check_same_network(self._pictures.gallery.embedding, self.settings.model)
        self._batcher = Batcher(self._load, self.settings.batch, self.metrics.embedded)
        self._decoders = ThreadPoolExecutor(cores(), "decode")
        self._askers = Askers(cores(), "ask", alone)
        self._changer = Askers(1, "change", alone)  # the journal takes one change at a time anyway

    def load(self) -> "Future[np.ndarray]":
        """Have the network loaded; then the server is ready."""
        gallery = self._opened().gallery
        future = self._batcher.submit(gallery.embedding, np.zeros(0, np.uint8))
        future.add_done_callback(lambda done: setattr(self, "loaded", not done.exception()))
        return future

    def close(self) -> None:
        """Finish what is under way."""
        self._decoders.shutdown(cancel_futures=True)
        self._batcher.close()
        self._askers.close()
        self._changer.close()

    def _open(self) -> Pictures:
        return Pictures(self.settings.index, self.settings.model, self.settings.changes, self._tell)

    def _load(self, embedding: Embedding) -> Embedder:
        """One network for a picture alone, which it embeds a third faster, one for any other number of them."""
        folder = self.settings.model
        check_same_network(embedding, folder)
        alone = openvino.load(folder, embedding.image_size, 1, "float32")
        if self.settings.batch == 1:
            return alone
        together = openvino.load(folder, embedding.image_size, -1, "float32")
        together(np.zeros((self.settings.batch, embedding.image_size, embedding.image_size, 3), np.uint8))  # warms up

        def embed(pixels: np.ndarray) -> np.ndarray:
            return alone(pixels) if len(pixels) == 1 else together(pixels)

        return embed

    def _opened(self) -> Pictures:
        if self._pictures is None:
            raise retry(problems.NOT_READY, "the index is being opened")
        return self._pictures

    # --- admission -------------------------------------------------------------------------------------------------

    @contextmanager
    def admission(self) -> Iterator[Admission]:
        """Take a place for a picture; raises Problem where none is free."""
        if not self.loaded:
            raise retry(problems.NOT_READY, "the network is being loaded; try again")
        if self._under_way >= self.settings.queue:
            raise retry(problems.QUEUE_FULL, f"{self._under_way} requests are under way; try again")
        self._under_way += 1
        self.metrics.under_way.set(self._under_way)
        place = Admission(self._take)
        try:
            yield place
        finally:
            self._under_way -= 1
            self._held -= place.held
            self.metrics.under_way.set(self._under_way)

    def _take(self, count: int) -> None:
        if self._held + count > HELD_MOST:
            raise retry(problems.QUEUE_FULL, "too many bytes of uploads are in memory; try again")
        self._held += count

    # --- questions -------------------------------------------------------------------------------------------------

    async def search(self, content: bytes, k: int | None, least: float, label: str | None) -> list[Hit]:
        """Find the images most similar to a picture."""

        def ask(gallery: Gallery, vector: np.ndarray) -> list[Hit]:
            state = gallery.state
            count = _checked_k(k, len(state))
            if not count:
                return []
            try:
                return gallery.search(vector[np.newaxis], count, least, label)[0]
            except LookalikeError as error:
                _seen(gallery, vector)
                raise _explained(error, gallery.state, label) from None

        return await self._with_vector(content, self._askers, ask)

    async def similar(self, item: str, k: int | None, least: float, label: str | None) -> list[Hit]:
        """Find the images most similar to one of the collection: neither the network nor the queue is touched."""

        def ask(gallery: Gallery) -> list[Hit]:
            state = gallery.state
            path = _known(state, item)
            count = _checked_k(k, len(state) - 1)
            if not count:
                return []
            try:
                return gallery.similar(path, count, least, label)
            except LookalikeError as error:
                _known(gallery.state, item)  # taken out meanwhile?
                raise _explained(error, gallery.state, label) from None

        return await self._ask(self._askers, ask)

    async def item(self, item: str) -> Item:
        """What an image is called."""

        def ask(gallery: Gallery) -> Item:
            state = gallery.state
            return Item(*state.path_and_label(state.row(_known(state, item))))

        return await self._ask(self._askers, ask)

    async def picture(self, item: str, side: int | None, tag: str) -> Picture | None:
        """An image itself, made anew, at most so many pixels a side; None where the client has it, by its tag."""

        def find(gallery: Gallery) -> Stored:
            state = gallery.state
            return stored(state, gallery.journal, state.row(_known(state, item)), self.settings.images)

        found = await self._ask(self._askers, find)
        if tag and found.tag(side) in tag:
            return None
        return await self._limited(lambda: rendered(found, side, self.settings.max_pixels))

    async def count(self) -> int:
        """How many images the collection has."""
        count = await self._ask(self._askers, lambda gallery: len(gallery.state))
        self.metrics.images.set(count)
        return count

    # --- changes ---------------------------------------------------------------------------------------------------

    async def add(self, content: bytes, label: str, name: str | None, *, replace: bool) -> tuple[Item, bool]:
        """Add a picture; it is on disk when this returns. Also says whether it took another's place."""
        digest = hashlib.sha256(content).hexdigest()
        path = await self._limited(lambda: _named(content, label, name, digest, self.settings.max_pixels))

        def free(gallery: Gallery) -> bool:
            there = path in gallery.state
            if there and not replace:
                raise Problem(problems.EXISTS, f"{path} is in the collection already; give another name, or "
                              "replace=true")  # fmt: skip
            return there

        await self._ask(self._askers, free)  # before the network is asked

        def ask(gallery: Gallery, vector: np.ndarray) -> tuple[Item, bool]:
            there = free(gallery)
            try:
                gallery.add(path, label, digest, content, vector, replace=replace)
            except LookalikeError:
                _seen(gallery, vector)
                free(gallery)  # another process may have taken the name meanwhile
                raise
            return Item(path, label), there

        return await self._with_vector(content, self._changer, ask)

    async def remove(self, item: str) -> None:
        """Take an image out; that is on disk when this returns."""

        def ask(gallery: Gallery) -> None:
            path = _known(gallery.state, item)
            try:
                gallery.remove([path])
            except LookalikeError:
                _known(gallery.state, item)
                raise

        await self._ask(self._changer, ask)

    # --- threads ---------------------------------------------------------------------------------------------------

    async def _with_vector(self, content: bytes, pool: Askers, ask: Callable[[Gallery, np.ndarray], T]) -> T:
        """Ask with a picture's embedding, once more where the index was rebuilt under another network meanwhile."""

        def checked(gallery: Gallery, wanted: Embedding, vector: np.ndarray) -> T | None:
            _ = gallery.state  # raises Rebuilt
            return ask(gallery, vector) if gallery.embedding == wanted else None

        for _ in range(2):
            embedding = (await self._ask(self._askers, _up_to_date)).embedding
            with self._batcher.decoding():
                pixels = await self._limited(
                    lambda embedding=embedding: images.fit(  # type: ignore[misc]
                        guard.decode(content, self.settings.max_pixels), embedding.image_size, embedding.fit
                    )
                )
                waiting = self._batcher.submit(embedding, pixels)
            try:
                vector = await asyncio.wrap_future(waiting)
            except LookalikeError as error:
                raise self._unavailable(error) from None
            answer = await self._ask(
                pool,
                lambda gallery, wanted=embedding, vector=vector: checked(gallery, wanted, vector),  # type: ignore[misc]
            )
            if answer is not None:
                return answer
        raise retry(problems.UNAVAILABLE, "the index is being rebuilt; try again")

    async def _ask(self, pool: Askers, ask: Callable[[Gallery], T]) -> T:
        return await pool(lambda: self._asked(ask))

    def _asked(self, ask: Callable[[Gallery], T]) -> T:
        """Ask the collection, which is opened anew where its index was rebuilt."""
        try:
            opened = self._opened()
            try:
                return ask(opened.gallery)
            except Rebuilt:
                with self._reopening:
                    if self._pictures is opened:
                        self._pictures = self._open()
                return ask(self._opened().gallery)
        except LookalikeError as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: LookalikeError) -> Problem:
        self._tell(str(error))  # it names files, which are the operator's to know
        return retry(problems.UNAVAILABLE, "the collection cannot be asked now; the server's log says why")

    async def _limited(self, work: Callable[[], T]) -> T:
        """Have a thread decode, for a limited time; one that takes longer is left to itself."""
        begun = threading.Event()

        def run() -> T:
            begun.set()
            return work()

        try:
            return await asyncio.wait_for(
                asyncio.get_running_loop().run_in_executor(self._decoders, run), self.settings.seconds
            )
        except TimeoutError:
            if begun.is_set():
                raise Problem(problems.TOO_SLOW, f"decoding took more than {self.settings.seconds:g} seconds") from None
            raise retry(problems.QUEUE_FULL, "too many pictures are being decoded; try again") from None


def alone() -> None:
    """Let this thread compare without helpers, which would wait for its next question at a core's full speed."""
    faiss.omp_set_num_threads(1)


def _up_to_date(gallery: Gallery) -> Gallery:
    _ = gallery.state  # raises Rebuilt
    return gallery


def _known(state: State, item: str) -> str:
    """The path of an id, if the collection has it; nothing else is done with it before."""
    path = ids.path(item)
    if path is None or path not in state:
        raise Problem(problems.UNKNOWN_ITEM, "no image of the collection has this id; ids are as a search shows them")
    return path


def _checked_k(k: int | None, most: int) -> int:
    if k is None:
        return min(10, most)
    if k > most:
        raise Problem(problems.INVALID, f"k is {k}, but there are {most} images to find; choose 1 to that")
    return k


def _seen(gallery: Gallery, vector: np.ndarray) -> None:
    """Raise Problem for a picture that has no direction: all black, say."""
    try:
        gallery.refinement.project(vector[np.newaxis])
    except LookalikeError:
        raise Problem(
            problems.FEATURELESS, "the picture's embedding has no direction, so it has no similarity with anything"
        ) from None


def _explained(error: LookalikeError, state: State, label: str | None) -> Exception:
    """A class that no image has is the client's mistake; anything else is not."""
    if label is not None and not isinstance(error, Rebuilt) and label not in state.labels():
        return Problem(problems.INVALID, str(error))
    return error


def _named(content: bytes, label: str, name: str | None, digest: str, max_pixels: int) -> str:
    """The path of a new image: its class, and the last part of the name, or of its bytes' hash where it has none."""
    if name is None:
        kind = guard.examined(content, max_pixels)
        last = digest[:32] + ENDINGS.get(kind, f".{kind.lower()}")
    else:
        last = PurePosixPath(name.replace("\\", "/")).name
    path = f"{label}/{last}".removeprefix("/")
    if not path.isprintable() or len(os.fsencode(last)) > NAME_MOST:
        raise Problem(problems.INVALID, f"the name must be printable, and at most {NAME_MOST} bytes long")
    try:
        check_path(path, label, ANYWHERE)
    except LookalikeError as error:
        raise Problem(problems.INVALID, str(error)) from None
    return path
