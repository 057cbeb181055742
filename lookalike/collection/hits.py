"""A hit: an image that was found."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hit:
    """An image that was found."""

    rank: int  # 1 is the most similar
    path: str
    label: str  # "" if it has none
    cosine: float  # what it is ranked by, -1 to 1: of the refined vectors, of the words, or both by their weight
    visual: float | None = None  # cosine of the refined vectors, where words took part too
    text: float | None = None  # cosine of the words, where they took part

    def fields(self) -> dict[str, Any]:
        """Return the values to show, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}
