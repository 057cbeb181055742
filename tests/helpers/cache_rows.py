"""Rows for the cache of embeddings. Tests give them to processes that need import neither TensorFlow nor OpenVINO."""

import hashlib

import numpy as np

from lookalike.extraction.cache import Recipe

RECIPE = Recipe("b", "l", "avg", "n", 64, "r", "float32", 4, "", "c", "p", 3)


def keys_of(count: int) -> list[bytes]:
    """Digests of so many pictures."""
    return [hashlib.sha256(bytes([number])).digest() for number in range(count)]


def vectors(count: int) -> np.ndarray:
    """Their embeddings, float32 (count, 3)."""
    return np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)
