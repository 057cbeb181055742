"""The targets of proof/fuzz/run.py take their seeds and notice a defect."""

import sys
from pathlib import Path

import numpy as np
import pytest

from proof.fuzz import run
from proof.fuzz.targets import TARGETS, DefectError


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_and_what_is_cut_from_them(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())
    for seed in seeds:
        for share in (0, 0.1, 0.5, 0.9, 1):
            target.feed(seed[: int(share * len(seed))])
    assert len(seeds) >= 2


def test_a_target_notices_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.images.decode.fit", lambda image, size, how: np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(DefectError, match=r"uint8 \(1, 1, 3\)"):
        TARGETS["decode"].feed(next(iter(TARGETS["decode"].seeds())))


def test_without_its_package_the_fuzzer_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert set(run.NAMES) == set(TARGETS)
    monkeypatch.setitem(sys.modules, "atheris", None)
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--folder", str(tmp_path), "decode"])
    with pytest.raises(SystemExit, match=r"pip install --require-hashes -r requirements/proof\.txt"):
        run.main()
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "decoed"])
    with pytest.raises(SystemExit, match=r"no target decoed; known: decode, archive"):
        run.main()
