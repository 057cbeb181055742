"""The server's threads: who waits, gives up, or fails."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from lookalike.api.collection import ServedCollection
from lookalike.api.workers import Batcher
from lookalike.artifacts.descriptions import Embedding, Network
from lookalike.collection.collection import Gallery
from lookalike.collection.picture_search import Pictures
from proof.patience import patience
from tests.helpers.served_collection import PATHS, Where

pytestmark = pytest.mark.slow  # servers of their own


def test_threads_that_close_finish_what_waits_but_for_who_gave_up(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.api.collection.cores", lambda: 1)
    gate = threading.Event()

    async def ask() -> Any:
        served = ServedCollection(where.settings())
        served.open()
        questions = (lambda _: gate.wait(), lambda _: 2, lambda _: 3)
        waiting = [asyncio.create_task(served.ask(question)) for question in questions]
        await asyncio.sleep(0)  # all are handed over
        waiting[1].cancel()
        closing = threading.Thread(target=served.close, daemon=True)
        closing.start()
        await asyncio.sleep(0.05)
        assert closing.is_alive()
        gate.set()
        found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), patience(60))
        closing.join(patience(60))
        return found, closing.is_alive()

    (first, second, third), alive = asyncio.run(ask())
    assert (first, third) == (True, 3) and isinstance(second, asyncio.CancelledError) and not alive


def test_a_picture_that_nobody_waits_for_is_not_embedded() -> None:
    begun, gate, loaded = threading.Event(), threading.Event(), []

    def load(embedding: Embedding) -> Any:
        loaded.append(embedding.image_size)

        def embed(pixels: np.ndarray) -> np.ndarray:
            begun.set()
            gate.wait(patience(60))
            return pixels[:, 0, 0].astype(np.float32)

        return embed

    batcher = Batcher(load, 4)
    described = Network("small", "random", "last", "avg", 3, 1, "x")
    one, other = (Embedding(described, size, "pad") for size in (2, 4))
    first = batcher.submit(one, np.full((2, 2, 3), 1, np.uint8))
    assert begun.wait(patience(60))
    given_up = batcher.submit(other, np.full((4, 4, 3), 2, np.uint8))  # a batch of its own: its network is another
    last = batcher.submit(one, np.full((2, 2, 3), 3, np.uint8))
    assert given_up.cancel()
    gate.set()
    assert (first.result(patience(60)).tolist(), last.result(patience(60)).tolist()) == ([1] * 3, [3] * 3)
    batcher.close()
    assert loaded == [2]


def test_who_waits_for_a_network_that_fails_hears_of_it_and_the_next_is_tried() -> None:
    begun, gate = threading.Event(), threading.Event()

    def load(_: Embedding) -> Any:
        begun.set()
        gate.wait(patience(60))
        return lambda pixels: pixels[:1, 0, 0].astype(np.float32)  # one vector, of however many pictures

    batcher = Batcher(load, 2)
    embedding, pixels = Embedding(Network("small", "random", "last", "avg", 3, 1, "x"), 2, "pad"), np.ones((2, 2, 3))
    first = batcher.submit(embedding, pixels)
    assert begun.wait(patience(60))
    second, third = (batcher.submit(embedding, pixels) for _ in range(2))  # together, when the first is done
    gate.set()
    with pytest.raises(ValueError, match="shorter"):
        third.result(patience(60))
    assert [each.result(patience(60)).tolist() for each in (first, second, batcher.submit(embedding, pixels))] == [
        [1] * 3
    ] * 3
    batcher.close()


def test_an_index_that_was_rebuilt_is_opened_once_for_all_who_ask(own: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, both = [], threading.Barrier(2)

    def open_pictures(*arguments: Any) -> Pictures:
        opened.append(Pictures(*arguments))
        return opened[-1]

    def question(gallery: Gallery) -> int:
        if gallery is opened[0].gallery:
            both.wait(patience(60))
        return len(gallery.state)

    monkeypatch.setattr("lookalike.api.collection.Pictures", open_pictures)
    served = ServedCollection(own.settings())
    served.open()
    own.rebuild(paths=PATHS[:7])
    threads = ThreadPoolExecutor(2)

    async def ask() -> list[int]:
        return list(await asyncio.gather(served.ask(question, threads), served.ask(question, threads)))

    assert asyncio.run(ask()) == [7, 7] and len(opened) == 2
    threads.shutdown()
    served.close()
