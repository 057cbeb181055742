"""Section `evaluate` of params.yaml."""

from typing import Annotated

from msgspec import Meta

from lookalike.base import params


class Settings(params.Section, frozen=True):
    """Section `evaluate` of params.yaml."""

    k: Annotated[list[Annotated[int, Meta(ge=1)]], Meta(min_length=1)]
    resamples: Annotated[int, Meta(ge=100, le=100_000)]
    split_seeds: Annotated[int, Meta(ge=1, le=100)]
    seed: Annotated[int, Meta(ge=0, lt=2**32)]
    memory: Annotated[int, Meta(ge=16)]
    examples: Annotated[int, Meta(ge=1, le=50)]
    worst: Annotated[int, Meta(ge=1, le=50)]
    map_images: Annotated[int, Meta(ge=10, le=20_000)]

    def __post_init__(self) -> None:
        """Check what one value cannot show: that each rank is listed once, smallest first."""
        if sorted(set(self.k)) != self.k:
            raise ValueError(f"k is {self.k}: list each rank once, smallest first")
