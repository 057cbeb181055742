"""Streaming N images through a network, in memory that does not grow with N."""

from collections.abc import Iterator

import numpy as np

from lookalike.runtimes import Embedder


def embed(pixels: np.ndarray, embedder: Embedder, batch_size: int) -> Iterator[np.ndarray]:
    """Yield embeddings block by block.

    pixels  uint8, (N, S, S, 3), may be memory-mapped.

    Yields float32 (b, D), b = batch_size but for the last block. The last batch is padded with black images, because
    a network compiled for another batch shape may differ in the last bits.
    """
    for start in range(0, len(pixels), batch_size):
        batch = np.asarray(pixels[start : start + batch_size])
        count = len(batch)
        if count < batch_size:
            batch = np.concatenate([batch, np.zeros((batch_size - count, *batch.shape[1:]), np.uint8)])
        yield embedder(batch)[:count]
