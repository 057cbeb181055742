"""What `make reproduce` says of runs that differ. The command as a whole runs in tests/pipeline/test_pipeline.py."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from proof import reproduce

OUTS = {
    "model": ["data/model.json"],
    "extract": ["data/features"],
    "evaluate": ["metrics/metrics.json", "plots/per_class.csv", "plots/map.png"],
    "benchmark": ["metrics/latency.json"],
}


def write_lock(folder: Path) -> Path:
    """A dvc.lock of what lies in the folder."""
    stages = {
        name: {"cmd": name, "params": {"params.yaml": {name: {"seed": 0}}}, "deps": [{"path": "code.py", "md5": "0"}],
               "outs": [{"path": out, "md5": md5(folder / out)} for out in outs]}
        for name, outs in reversed(OUTS.items())
    }  # fmt: skip
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return folder


def md5(path: Path) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return hashlib.md5(b"".join(file.read_bytes() for file in files)).hexdigest()


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], Path]:
    """A writer of folders that hold what a run left, all alike."""

    def write(name: str) -> Path:
        folder = tmp_path / name
        for part in ("data/features", "metrics", "plots"):
            (folder / part).mkdir(parents=True)
        (folder / "data/model.json").write_text(json.dumps({"backbone": "ResNet50", "sha256": "a"}))
        np.save(folder / "data/features/features.npy", np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4))
        (folder / "metrics/metrics.json").write_text(json.dumps({"mAP": 0.71, "queries": 60}))
        (folder / "metrics/latency.json").write_text(json.dumps({"p50_ms": 1.0}))
        (folder / "plots/per_class.csv").write_text("class,mAP\na,0.5\nb,0.6\n")
        from PIL import Image

        Image.new("RGB", (4, 4)).save(folder / "plots/map.png")
        return write_lock(folder)

    return write


def change(folder: Path, out: str, text: str) -> None:
    (folder / out).write_text(text)


def test_equal_runs_agree_whatever_their_times(run: Callable[[str], Path]) -> None:
    one, other = run("run-1"), run("run-2")
    change(other, "metrics/latency.json", '{"p50_ms": 2.0}')
    assert reproduce.compare(one, write_lock(other)) == []


def test_the_report_names_each_artifact_and_the_first_stage(run: Callable[[str], Path]) -> None:
    one, other = run("run-1"), run("run-2")
    features = np.load(one / "data/features/features.npy")
    features[0, 0] += 2e-7
    np.save(other / "data/features/features.npy", features)
    change(other, "metrics/metrics.json", '{"mAP": 0.7100002, "queries": 60}')
    change(other, "plots/per_class.csv", "class,mAP\na,0.5\nb,0.7\n")
    report = reproduce.report(reproduce.compare(one, write_lock(other)))
    assert report.splitlines() == [
        "  extract: data/features: features.npy differs in the last bits: 1 of 12 values, by 2.38e-07 at most "
        "(values reach 2)",
        "  evaluate: metrics/metrics.json: differs in mAP 0.71 and 0.7100002",
        "  evaluate: plots/per_class.csv: differs in 1 of 3 lines",
        "Look first at extract, since later stages are made of its outputs: the processor, extract.batch_size, the "
        "versions of TensorFlow and OpenVINO: the last bits are theirs.",
    ]


def test_another_seed_or_a_lost_output_is_told(run: Callable[[str], Path]) -> None:
    one, other = run("run-1"), run("run-2")
    np.save(other / "data/features/features.npy", np.ones((2, 4), np.float32))
    (other / "plots/map.png").write_bytes(b"gone")
    lock = yaml.safe_load((write_lock(other) / "dvc.lock").read_text())
    lock["stages"]["model"]["params"]["params.yaml"]["model"]["seed"] = 1
    lock["stages"]["evaluate"]["deps"][0]["md5"] = "1"
    lock["stages"]["evaluate"]["outs"].pop(1)
    (other / "dvc.lock").write_text(yaml.safe_dump(lock))
    (other / "plots/map.png").unlink()
    told = [str(each).strip() for each in reproduce.compare(one, other)]
    assert sorted(told[:2]) == [
        "evaluate: dvc.lock: other inputs: code.py", "model: dvc.lock: other settings (params.yaml)",
    ]  # fmt: skip
    assert told[2:] == [
        "extract: data/features: features.npy is float32 (3, 4) and float32 (2, 4)",
        "evaluate: plots/per_class.csv: only in run-1",
        "evaluate: plots/map.png: the hashes differ; the files are not here to compare",
    ]


@pytest.mark.parametrize(
    ("figures", "tolerance", "good", "said"),
    [
        ('{"mAP": 0.714, "queries": 60}', 0.01, True, "every figure of metrics/metrics.json is within 0.01"),
        ('{"mAP": 0.714, "queries": 60}', 0.001, False, "mAP: 0.714 here, 0.71 committed"),
        ('{"mAP": 0.69, "queries": 60}', 0.01, False, "mAP: 0.69 here, 0.71 committed"),
        ('{"mAP": 0.71, "queries": 61}', 0.01, False, "queries: 61 here, 60 committed"),
        ('{"mAP": 0.71}', 0.01, False, "queries: None here, 60 committed"),
    ],
)
def test_committed_figures_are_met_within_the_tolerance(
    run: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    figures: str,
    tolerance: float,
    good: bool,
    said: str,
) -> None:
    here, committed = run("run-1"), run("committed")
    change(here, "metrics/metrics.json", figures)
    assert reproduce.agree_with_committed(write_lock(here), committed, tolerance) is good
    printed = capsys.readouterr().out
    assert said in printed and "Look first at evaluate" in printed
