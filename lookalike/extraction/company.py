"""Whether an embedding depends on its company: its place in a batch, and the other images there.

On some processors TensorFlow's do, in their last bits (on an EPYC with AVX2, 5 rows of 11): the instructions that sum a
row up are chosen by how many rows are left. Yet the same images must give the same features, whatever the cache held
before. So it is measured, once for a recipe and a processor, and where it matters each image gets a place of its own,
which its pixels decide. Embedding one by one would do too, but takes 1.3 times as long (ResNet50, TensorFlow, 2 cores),
and far longer on a GPU.
"""

from collections import deque
from typing import Literal, cast, get_args

import numpy as np

from lookalike.base import user_cache
from lookalike.extraction.cache import Recipe
from lookalike.runtimes.registry import Embedder

Company = Literal["any", "own place", "alone"]
# Batches that may wait until one is composed: of 16, some 2 % of the places stay empty; of 4, 11 %.
WAITING = 16
WAITING_MOST = 4096  # images, 0.6 GB at 224 pixels; but always two batches


def company_of(recipe: Recipe, network: Embedder) -> Company:
    """Measure in which company an image's embedding is always the same, or find what was measured before.

    network  runs batches of the recipe's size.

    any        its bits depend on nothing but its pixels;
    own place  on its place in the batch too;
    alone      on the other images too. That was never seen, and costs a batch an image.
    """
    if recipe.batch_size == 1:
        return "any"
    found = user_cache.remembered("companies", recipe.fingerprint[:32], lambda: _measured(recipe, network))
    return cast(Company, found if found in get_args(Company) else _measured(recipe, network))  # a damaged note


def _measured(recipe: Recipe, network: Embedder) -> str:
    images = _pictures(2 * recipe.batch_size, recipe.image_size)
    batch, others = images[: recipe.batch_size], images[recipe.batch_size :]  # (B, S, S, 3) each
    beside = np.where((np.arange(len(batch)) % 2 == 0)[:, None, None, None], batch, others)
    first, both = np.array(network(batch)), np.array(network(beside[::-1].copy()))[::-1]  # (B, D)
    if np.array_equal(both[::2], first[::2]):  # at other places and beside others
        return "any"
    return "own place" if np.array_equal(np.array(network(beside))[::2], first[::2]) else "alone"


def _pictures(count: int, size: int) -> np.ndarray:
    """Draw blotches of colour: uint8, (count, size, size, 3)."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    places = np.arange(size) * 8 // size
    return np.ascontiguousarray(coarse[:, places][:, :, places])


class Composer:
    """Decides which of the images that wait go into the next batch, and where."""

    def __init__(self, company: Company, batch_size: int) -> None:
        """Begin with none."""
        self._company, self._batch_size = company, batch_size
        self._queues: list[deque[bytes]] = [deque() for _ in range(batch_size if company == "own place" else 1)]
        self._waiting = 0

    def add(self, key: bytes) -> None:
        """Let an image wait; `key` is the SHA-256 of its pixels."""
        self._queues[int.from_bytes(key[:8], "big") % len(self._queues)].append(key)
        self._waiting += 1

    def ready(self) -> bool:
        """Whether a batch is to be run now, and not only at the end."""
        size = self._batch_size
        own_place = min(WAITING * size, max(2 * size, WAITING_MOST))
        return self._waiting >= {"any": size, "own place": own_place, "alone": 1}[self._company]

    def take(self) -> dict[bytes, int]:
        """Compose the next batch: the place of each image, by its key; empty if none waits."""
        if self._company == "own place":
            taken = {queue.popleft(): place for place, queue in enumerate(self._queues) if queue}
        else:
            most = 1 if self._company == "alone" else self._batch_size
            taken = {self._queues[0].popleft(): place for place in range(min(most, self._waiting))}
        self._waiting -= len(taken)
        return taken
