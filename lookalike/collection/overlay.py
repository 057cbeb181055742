"""An index with changes on top: rows that are gone are not found, vectors that came are compared with every query.

The index itself stays as it was built. Row numbers go on after its own: N, N + 1, ... for what was added, in order.
"""

import numpy as np

from lookalike.index.build import Index, check_queries, in_order


class Changed:
    """An index without removed rows and with added ones. Immutable: a change makes a new one."""

    def __init__(self, index: Index, present: np.ndarray, added: np.ndarray) -> None:
        """Lay changes over an index of N vectors.

        present  bool, (N + M,): rows that can be found.
        added    float32, (M, D), unit length.
        """
        self._index, self._present, self._added = index, present, added
        self._kept = present[: len(index)]
        self._untouched = bool(self._kept.all())
        self._base = int(np.count_nonzero(self._kept))
        self._count = self._base + int(np.count_nonzero(present[len(index) :]))

    def __len__(self) -> int:
        """Count the rows that can be found."""
        return self._count

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See Index.search; `allowed` is bool, (N + M,)."""
        check_queries(queries, k, len(self), self._index.dim)
        if self._untouched and not len(self._added):
            return self._index.search(queries, k, allowed)
        size = len(self._index)
        base = None if self._untouched and allowed is None else self._kept
        fresh = self._present[size:]
        if allowed is not None:
            base, fresh = self._kept & allowed[:size], fresh & allowed[size:]
        cosines, rows = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        if self._base:
            cosines, rows = self._index.search(queries, min(k, self._base), base)
        slots = np.flatnonzero(fresh)
        if len(slots):
            near = np.stack([(self._added @ query)[slots] for query in queries])  # (Q, m)
            if len(slots) > 4 * k:  # sort only what can be among the first k; of equals, all
                kth = np.partition(near, -k, axis=1)[:, -k, None]
                wanted = np.flatnonzero((near >= kth).any(axis=0))
                near, slots = near[:, wanted], slots[wanted]
            cosines = np.concatenate([cosines, near], axis=1)
            rows = np.concatenate([rows, np.broadcast_to(slots + size, near.shape)], axis=1)
        cosines, rows = in_order(cosines, rows, k)
        return cosines[:, :k], rows[:, :k]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """See Index.vectors."""
        size = len(self._index)
        if not len(self._added):
            return self._index.vectors(rows)
        found = self._index.vectors(np.where(rows < size, rows, -1))
        return np.where((rows < size)[..., None], found, self._added[np.maximum(rows - size, 0)])
