"""Batches of P classes with K images each."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batches:
    """The images to draw batches from, and how to draw them.

    rows     int64, (n,), the images to train on.
    codes    int, (n,), their classes, each with at least `images` images.
    classes  P, classes per batch.
    images   K, images per class.
    views    V, number of views; one of them is drawn for each image.
    seed     seed of all draws.
    """

    rows: np.ndarray
    codes: np.ndarray
    classes: int
    images: int
    views: int
    seed: int

    def __len__(self) -> int:
        """Return the number of batches per epoch, which together draw as many images as there are."""
        return max(1, round(len(self.rows) / (self.classes * self.images)))

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Draw an epoch's batches: rows, codes and views, (P K,) each, class by class.

        A batch's classes, and the images of each class, are drawn without replacement, all classes equally often. The
        draw depends only on the seed and the epoch's number, so that a resumed training draws the same batches.
        """
        rng = np.random.default_rng([self.seed, number])
        own = {code: self.rows[self.codes == code] for code in np.unique(self.codes).tolist()}
        for _ in range(len(self)):
            chosen = rng.choice(list(own), self.classes, replace=False)
            rows = np.concatenate([rng.choice(own[code], self.images, replace=False) for code in chosen.tolist()])
            yield rows, np.repeat(chosen, self.images), rng.integers(0, self.views, len(rows))
