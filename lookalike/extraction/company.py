"""Batch company: whether an embedding's bits depend on its place in the batch or on the other images there.

On some processors, the last bits of TensorFlow's do (5 rows of 11 on an EPYC with AVX2), because the instructions that
sum a row depend on how many rows are left. But the same images must give the same features, whatever was in the cache.
So the dependence is measured once per recipe, and if there is one, each image always gets the same place, chosen by its
pixels. Embedding images one by one would work too, but takes 1.3 times as long (ResNet50, TensorFlow, 2 cores), and far
longer on a GPU.
"""

from collections import deque
from typing import Literal, cast, get_args

import numpy as np

from lookalike.base import user_cache
from lookalike.extraction.cache import Recipe
from lookalike.runtimes.registry import Embedder

Company = Literal["any", "own place", "alone"]
# Batches of images that may wait before one is composed: with 16, about 2 % of the places stay empty; with 4, 11 %.
WAITING = 16
WAITING_MOST = 4096  # most images that may wait, 0.6 GB at 224 pixels; but at least two batches


def company_of(recipe: Recipe, network: Embedder) -> Company:
    """Return the conditions under which an image's embedding is always the same, measured once per recipe.

    network  runs batches of the recipe's size.

    any        the embedding depends on the image's pixels only;
    own place  it also depends on the image's place in the batch;
    alone      it also depends on the other images. Never observed so far; each image then takes a batch of its own.
    """
    if recipe.batch_size == 1:
        return "any"
    found = user_cache.remembered("companies", recipe.fingerprint[:32], lambda: _measured(recipe, network))
    return cast(Company, found if found in get_args(Company) else _measured(recipe, network))  # else: damaged file


def _measured(recipe: Recipe, network: Embedder) -> str:
    images = _pictures(2 * recipe.batch_size, recipe.image_size)
    batch, others = images[: recipe.batch_size], images[recipe.batch_size :]  # (B, S, S, 3) each
    beside = np.where((np.arange(len(batch)) % 2 == 0)[:, None, None, None], batch, others)
    first, both = np.array(network(batch)), np.array(network(beside[::-1].copy()))[::-1]  # (B, D)
    if np.array_equal(both[::2], first[::2]):  # at other places and beside others
        return "any"
    return "own place" if np.array_equal(np.array(network(beside))[::2], first[::2]) else "alone"


def _pictures(count: int, size: int) -> np.ndarray:
    """Draw pictures of random colour blocks: uint8, (count, size, size, 3)."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    places = np.arange(size) * 8 // size
    return np.ascontiguousarray(coarse[:, places][:, :, places])


class Composer:
    """A queue of waiting images that decides which of them go into the next batch, and at which place."""

    def __init__(self, company: Company, batch_size: int) -> None:
        """Create an empty queue."""
        self._company, self._batch_size = company, batch_size
        self._queues: list[deque[bytes]] = [deque() for _ in range(batch_size if company == "own place" else 1)]
        self._waiting = 0

    def add(self, key: bytes) -> None:
        """Add an image; `key` is the SHA-256 of its pixels."""
        self._queues[int.from_bytes(key[:8], "big") % len(self._queues)].append(key)
        self._waiting += 1

    def ready(self) -> bool:
        """Return whether enough images wait to run a batch now."""
        size = self._batch_size
        own_place = min(WAITING * size, max(2 * size, WAITING_MOST))
        return self._waiting >= {"any": size, "own place": own_place, "alone": 1}[self._company]

    def take(self) -> dict[bytes, int]:
        """Remove the next batch's images; return each one's place by its key, or an empty dict if none waits."""
        if self._company == "own place":
            taken = {queue.popleft(): place for place, queue in enumerate(self._queues) if queue}
        else:
            most = 1 if self._company == "alone" else self._batch_size
            taken = {self._queues[0].popleft(): place for place in range(min(most, self._waiting))}
        self._waiting -= len(taken)
        return taken
