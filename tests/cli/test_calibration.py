"""Images that are set apart for int8."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from lookalike.base.errors import LookalikeError
from lookalike.cli import calibration
from tests.helpers.small_network import PIXELS

pytestmark = pytest.mark.slow  # TensorFlow, DVC and kills


def test_a_draw_of_calibration_images_is_seeded() -> None:
    one, again, other = (calibration.draw(PIXELS, 5, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert np.array_equal(calibration.draw(PIXELS, 100, 0), PIXELS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["c.npy", "--images", "0"], "--images is 0; choose 1 to 10000"),
        (["c.npy", "--images", "10001"], "--images is 10001; choose 1 to 10000"),
        (["c.npy", "--seed", "-1"], "--seed is -1; choose 0 or more"),
        (["c.npz"], "c.npz: the name must end in .npy"),
    ],
)
def test_mistakes_in_setting_images_apart_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["calibration", "data/processed", *arguments])
    with pytest.raises(LookalikeError, match=f"^{re.escape(message)}$"):
        calibration.main()
    assert list(tmp_path.iterdir()) == []
