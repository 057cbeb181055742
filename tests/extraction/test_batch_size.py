"""The batch size that is found where none is set."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lookalike.extraction import batch_size
from lookalike.runtimes import registry
from tests.helpers.cache_rows import RECIPE

pytestmark = pytest.mark.slow  # TensorFlow, DVC and kills


@pytest.mark.parametrize(
    ("room", "fastest", "best"), [(10**9, 10**9, 1024), (10**9, 100, 128), (40, 10**9, 32), (8, 10**9, 8)]
)
def test_the_batch_grows_while_that_pays_and_fits(
    monkeypatch: pytest.MonkeyPatch, room: int, fastest: int, best: int
) -> None:
    """A device that takes a second for up to `fastest` images, and has memory for `room`."""
    clock, loaded = [0.0], []
    monkeypatch.setattr(batch_size, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def load(size: int) -> registry.Embedder:
        def run(batch: np.ndarray) -> np.ndarray:
            if len(batch) > room:
                raise registry.OutOfMemory(f"a batch of {len(batch)} images does not fit")
            clock[0] += max(1.0, len(batch) / fastest)
            return batch

        loaded.append(size)
        return run

    assert batch_size.fastest(RECIPE, load) == best
    assert loaded[-1] == min(2 * best, 1024)  # none is tried behind one that was too large
    loaded.clear()
    assert batch_size.fastest(RECIPE, load) == best and loaded == []  # found earlier


def test_a_device_too_small_for_any_batch_is_said(cache_folder: Path) -> None:
    def load(size: int) -> registry.Embedder:
        raise registry.OutOfMemory(f"a batch of {size} images does not fit")

    with pytest.raises(registry.OutOfMemory, match="a batch of 8 images"):
        batch_size.fastest(RECIPE, load)
    assert not list(cache_folder.rglob("*.json"))
