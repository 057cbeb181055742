"""The server's work, apart from HTTP: an open collection, and threads that decode, embed, search and change."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from lookalike.api import guard, problems
from lookalike.api.collection import ServedCollection, alone, explained, known, named_by_content, path_of, seen
from lookalike.api.metrics import Metrics
from lookalike.api.pictures import Lane, Picture, Run, Stored, rendered, stored
from lookalike.api.problems import Problem, retry
from lookalike.api.settings import Settings
from lookalike.api.workers import Admission, Batcher, Place
from lookalike.artifacts.descriptions import Embedding, check_same_network
from lookalike.base.errors import LookalikeError
from lookalike.base.machine import cores
from lookalike.collection.collection import Gallery
from lookalike.collection.hits import Hit
from lookalike.collection.query import Query
from lookalike.images import decode
from lookalike.runtimes import openvino
from lookalike.runtimes.registry import Embedder

LIGHT_BYTES, LIGHT_WORK = 8_000_000, 64_000_000  # limits of an upload in the light lane; see guard.work
HEAVY_MOST = 8  # uploads in the heavy lane: each takes up to 5 s, and a client waits 10 s

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """An image of the collection."""

    path: str
    label: str


class Service:
    """A collection that is served."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; `open` opens the collection."""
        self.settings, self.metrics = settings, Metrics()
        self._collection = ServedCollection(settings)
        self._admission = Admission(settings.queue, self.metrics)
        self.loaded = False

    # --- life ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the index, and start the threads. Raises LookalikeError where an operator has to act."""
        self._collection.open()
        check_same_network(self._collection.gallery.embedding, self.settings.model)
        self._batcher = Batcher(self._load, self.settings.batch, self.metrics.embedded)
        self._light = Lane(cores(), self.settings.queue)
        self._heavy = Lane(max(1, cores() // 2), HEAVY_MOST, nice=10)
        self._reader = ThreadPoolExecutor(1, "read", alone)  # a text that the network reads is no brief question
        self._changer = ThreadPoolExecutor(1, "change", alone)  # the journal takes one change at a time anyway

    def load(self) -> "Future[np.ndarray]":
        """Load the network in its thread; then the server is ready."""
        future = self._batcher.submit(self._collection.gallery.embedding, np.zeros(0, np.uint8))
        future.add_done_callback(lambda done: setattr(self, "loaded", not done.exception()))
        return future

    def close(self) -> None:
        """Finish what is under way."""
        self._light.close()
        self._heavy.close()
        self._batcher.close()
        self._collection.close()
        self._reader.shutdown()
        self._changer.shutdown()

    def _load(self, embedding: Embedding) -> Embedder:
        """Load two networks: one for single pictures, which it embeds a third faster, and one for batches."""
        folder = self.settings.model
        check_same_network(embedding, folder)
        single = openvino.load(folder, embedding.image_size, 1, "float32")
        if self.settings.batch == 1:
            return single
        together = openvino.load(folder, embedding.image_size, -1, "float32")
        together(np.zeros((self.settings.batch, embedding.image_size, embedding.image_size, 3), np.uint8))  # warms up

        def embed(pixels: np.ndarray) -> np.ndarray:
            return single(pixels) if len(pixels) == 1 else together(pixels)

        return embed

    def admission(self, length: int) -> AbstractContextManager[Place]:
        """Take a place for a picture of so many bytes, if that is known; raises Problem where none is free.

        So it does before the network is loaded.
        """
        if not self.loaded:
            raise retry(problems.NOT_READY, "the network is being loaded; try again")
        if self.settings.max_bytes >= length > LIGHT_BYTES:
            self._heavy.check()  # before it is received
        return self._admission.place()

    # --- questions -------------------------------------------------------------------------------------------------

    async def search(self, content: bytes | None, query: Query) -> list[Hit]:
        """Find the images most similar to a picture, to words, or both; for words alone the network is not touched."""

        def ask(gallery: Gallery, vector: np.ndarray | None) -> list[Hit]:
            if not len(gallery.state):
                return []
            try:
                asked = None if vector is None else vector[np.newaxis]
                return gallery.search(asked, query)[0]
            except LookalikeError as error:
                if vector is not None:
                    seen(gallery, vector)
                raise explained(error) from None

        if content is None:
            return await self._collection.ask(lambda gallery: ask(gallery, None), self._threads(query))
        return await self._with_vector(content, self._threads(query), ask)

    async def similar(self, item: str, query: Query) -> list[Hit]:
        """Find the images most similar to one of the collection: neither the network nor the queue is touched."""

        def ask(gallery: Gallery) -> list[Hit]:
            state = gallery.state
            path = known(state, item)
            if len(state) == 1:
                return []
            try:
                return gallery.similar(path, query)
            except LookalikeError as error:
                known(gallery.state, item)  # taken out meanwhile?
                raise explained(error) from None

        return await self._collection.ask(ask, self._threads(query))

    async def item(self, item: str) -> Item:
        """Return path and class of an image."""

        def ask(gallery: Gallery) -> Item:
            state = gallery.state
            return Item(*state.path_and_label(state.row(known(state, item))))

        return await self._collection.ask(ask)

    async def picture(self, item: str, side: int | None, tag: str) -> Picture | None:
        """Return an image, encoded anew, at most so many pixels a side; None where the client's tag is current."""

        def find(gallery: Gallery) -> Stored:
            state = gallery.state
            return stored(state, gallery.journal, state.row(known(state, item)), self.settings.images)

        found = await self._collection.ask(find)
        if tag and found.tag(side) in tag:
            return None
        return await self._limited(self._light, lambda run: rendered(found, side, self.settings.max_pixels, run))

    async def count(self) -> int:
        """Count the images of the collection."""
        count = await self._collection.ask(lambda gallery: len(gallery.state))
        self.metrics.images.set(count)
        return count

    # --- changes ---------------------------------------------------------------------------------------------------

    async def add(self, content: bytes, label: str, name: str | None, *, replace: bool) -> tuple[Item, bool]:
        """Add a picture; it is on disk when this returns. Also says whether it took another's place."""
        digest = hashlib.sha256(content).hexdigest()
        path = path_of(label, named_by_content(digest, "PNG") if name is None else name)  # the format is known later

        def free(gallery: Gallery) -> bool:
            there = path in gallery.state
            if there and not replace:
                raise Problem(
                    problems.EXISTS, f"{path} is in the collection already; give another name, or replace=true"
                )
            return there

        async def examined(kind: str) -> None:
            """Refuse a name that is taken, before the network is asked."""
            nonlocal path
            path = path_of(label, named_by_content(digest, kind))
            await self._collection.ask(free)

        if name is not None:
            await self._collection.ask(free)  # before it is decoded

        def ask(gallery: Gallery, vector: np.ndarray) -> tuple[Item, bool]:
            there = free(gallery)
            try:
                gallery.add(path, label, digest, content, vector, replace=replace)
            except LookalikeError:
                seen(gallery, vector)
                free(gallery)  # another process may have taken the name meanwhile
                raise
            return Item(path, label), there

        return await self._with_vector(content, self._changer, ask, examined if name is None else None)

    async def remove(self, item: str) -> None:
        """Take an image out; that is on disk when this returns."""

        def ask(gallery: Gallery) -> None:
            path = known(gallery.state, item)
            try:
                gallery.remove([path])
            except LookalikeError:
                known(gallery.state, item)
                raise

        await self._collection.ask(ask, self._changer)

    # --- threads ---------------------------------------------------------------------------------------------------

    async def _with_vector(
        self,
        content: bytes,
        threads: ThreadPoolExecutor | None,
        ask: Callable[[Gallery, np.ndarray], T],
        examined: Callable[[str], Awaitable[None]] | None = None,
    ) -> T:
        """Run a question with a picture's embedding, again where the index was rebuilt under another network meanwhile.

        examined  is called with the picture's format, when it is decoded.
        """

        def checked(gallery: Gallery, wanted: Embedding, vector: np.ndarray) -> T | None:
            _ = gallery.state  # raises Rebuilt
            return ask(gallery, vector) if gallery.embedding == wanted else None

        for _ in range(2):
            embedding = (await self._collection.ask(_up_to_date)).embedding
            waiting = await self._decoded(content, embedding, examined)
            try:
                vector = await asyncio.wrap_future(waiting)
            except LookalikeError as error:
                raise self._collection.unavailable(error) from None
            answer = await self._collection.ask(
                lambda gallery, wanted=embedding, vector=vector: checked(gallery, wanted, vector),  # type: ignore[misc]
                threads,
            )
            if answer is not None:
                return answer
        raise retry(problems.UNAVAILABLE, "the index is being rebuilt; try again")

    def _threads(self, query: Query) -> ThreadPoolExecutor | None:
        """Choose the threads for a query: one that embeds texts, or None for the shared ones."""
        return self._reader if query.text is not None and self._collection.gallery.reads_texts else None

    async def _decoded(
        self, content: bytes, embedding: Embedding, examined: Callable[[str], Awaitable[None]] | None
    ) -> "Future[np.ndarray]":
        """Decode an upload, and queue it to be embedded."""

        async def embed(kind: str, square: bytes) -> "Future[np.ndarray]":
            if examined:
                await examined(kind)
            return self._batcher.submit(embedding, decode.as_pixels(square))

        job = content, embedding.image_size, embedding.fit, self.settings.max_pixels
        if len(content) <= LIGHT_BYTES:
            with suppress(guard.LaboriousError), self._batcher.decoding():
                return await embed(*await self._decode(self._light, guard.square, *job, LIGHT_WORK))
        return await embed(*await self._decode(self._heavy, guard.square, *job))  # which no batch waits for

    async def _decode(self, lane: Lane, work: Callable[..., T], *job: Any) -> T:
        """Run work(*job) in a decoder."""
        return await self._limited(lane, lambda run: cast(T, run(work, *job)))

    async def _limited(self, lane: Lane, work: Callable[[Run], T]) -> T:
        """Run work in a decoder for a limited time."""
        try:
            return await lane.run(work, self.settings.seconds)
        except LookalikeError as error:  # a damaged journal or bundle; a decoder that cannot be started
            raise self._collection.unavailable(error) from None


def _up_to_date(gallery: Gallery) -> Gallery:
    _ = gallery.state  # raises Rebuilt
    return gallery
