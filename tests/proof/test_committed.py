"""What `make` says where its results are not those that are committed."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from proof import committed

FEATURES = np.random.default_rng(0).random((6, 4), dtype=np.float32)
BITS = np.nextafter(FEATURES, np.float32(2))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Commit results, then write others: features, mAP, the hash of the figures' code."""
    (tmp_path / "metrics").mkdir()
    (tmp_path / "data" / "features").mkdir(parents=True)

    def write(features: np.ndarray = FEATURES, figure: float = 0.71, code: str = "a", plot: str = "p") -> None:
        np.save(tmp_path / "data/features/features.npy", features)
        (tmp_path / "metrics/metrics.json").write_text(json.dumps({"mAP": figure, "queries": 60}))
        stages = {
            "extract": {"cmd": "x", "outs": [{"path": "data/features", "md5": str(features.tobytes())}]},
            "evaluate": {
                "cmd": "e",
                "deps": [{"path": "code.py", "md5": code}, {"path": "data/features", "md5": str(features.tobytes())}],
                "outs": [{"path": "metrics/metrics.json", "md5": str(figure)}, {"path": "plots/map.csv", "md5": plot}],
            },
            "benchmark": {"cmd": "b", "outs": [{"path": "metrics/latency.json", "md5": str(features.sum())}]},
        }
        (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))

    write()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(committed, "features_of", lambda folder: FEATURES)
    for command in ("init -q", "add .", "-c user.name=t -c user.email=t@localhost commit -qm x"):
        subprocess.run(["git", *command.split()], check=True)
    return write


@pytest.mark.parametrize(
    ("written", "status", "said"),
    [
        ({}, 0, ""),
        ({"features": FEATURES + 1, "figure": 0.1, "code": "b"}, 0, ""),  # another experiment
        ({"features": BITS, "figure": 0.71004}, 0, "make: features differ in their last bits from the committed"),
        ({"features": BITS, "figure": 0.75}, 1, "and mAP is off by 0.04000; that is no other processor's rounding"),
        ({"features": FEATURES * np.float32(1.01)}, 1, "error: features differ from the committed ones by 1.0e-02 of"),
        ({"features": FEATURES[:5]}, 1, "error: features differ from the committed ones by inf of"),
        ({"plot": "q"}, 0, "features, plots/map.csv came out otherwise, and every figure is within 0.0"),
        ({"figure": 0.6}, 1, "metrics/metrics.json came out otherwise, and mAP is off by 0.11000"),
    ],
)  # fmt: skip
def test_what_is_said_of_other_results(tree, written: dict[str, object], status: int, said: str, capsys) -> None:
    tree(**written)
    assert committed.main() == status
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == bool(said)
    if said:
        assert (committed.BACK in error) == (status == 0 or "plots" in error or "committed features" in error)
    if "last bits" in said:
        assert "of the largest value at most, because this is another processor (" in error
        assert "every figure is within 0.00004" in error


def test_committed_features_that_are_nowhere_are_said(tree, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(committed, "features_of", lambda folder: None)
    tree(features=BITS)
    assert committed.main() == 0
    assert "(the committed ones could not be fetched)" in capsys.readouterr().err


def test_a_count_that_differs_is_off() -> None:
    one, other = (json.dumps({"mAP": 0.5, "queries": count}).encode() for count in (60, 61))
    assert committed.figures_apart(one, other) == (float("inf"), "queries")
    assert committed.figures_apart(one, one)[0] == 0
