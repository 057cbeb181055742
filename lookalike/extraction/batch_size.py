"""Search for the fastest batch size. The result is kept in the user's cache folder, because embeddings depend on it."""

import time
from collections.abc import Callable

import numpy as np

from lookalike.base import user_cache
from lookalike.extraction.cache import Recipe
from lookalike.runtimes.registry import Embedder, OutOfMemory

TRIED = (8, 16, 32, 64, 128, 256, 512, 1024)
GAIN = 1.05  # a larger batch takes more memory, so it must be faster by this factor
SECONDS = 2.0  # duration of the measurement of each size


def fastest(recipe: Recipe, load: Callable[[int], Embedder]) -> int:
    """Return the batch size that embeds the most images a second, measured once per recipe.

    recipe  a recipe whose batch size does not matter.
    load    returns the network for batches of a given size.

    Doubles the batch size from 8 until that gains less than 5 %, or the batch does not fit into memory.
    """
    found = user_cache.remembered("batch_sizes", recipe.fingerprint[:32], lambda: _fastest(recipe, load))
    return found if isinstance(found, int) else _fastest(recipe, load)


def _fastest(recipe: Recipe, load: Callable[[int], Embedder]) -> int:
    best, rate = TRIED[0], 0.0
    for size in TRIED:
        try:
            now = _images_per_second(load(size), np.zeros((size, recipe.image_size, recipe.image_size, 3), np.uint8))
        except OutOfMemory:
            if not rate:
                raise
            break
        if now < GAIN * rate:
            break
        best, rate = size, now
    return best


def _images_per_second(embedder: Embedder, batch: np.ndarray) -> float:
    embedder(batch)  # the first call compiles
    runs, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS:
        embedder(batch)
        runs += 1
    return runs * len(batch) / spent
