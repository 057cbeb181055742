"""The same features give the same index and figures, whatever instructions the numerical libraries choose."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from lookalike.artifacts.arrays import save_strings
from lookalike.base.vectors import unit_length
from proof import anywhere

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,  # stages
    pytest.mark.skipif(
        sys.platform != "linux", reason="lookalike.base.machine lists a processor's features on Linux only"
    ),
]


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """300 embeddings in six classes, close together as those of an untrained network are."""
    rng = np.random.default_rng(0)
    count, dim = 300, 96
    labels = np.repeat(list("abcdef"), count // 6)
    centres = 1 + 0.3 * rng.random((6, dim))
    features = np.repeat(centres, count // 6, axis=0) + 0.1 * rng.random((count, dim))
    for name in ("features", "processed"):
        (tmp_path / name).mkdir()
        save_strings(tmp_path / name / "image_paths.npy", [f"{row:04}.png" for row in range(count)])
        save_strings(tmp_path / name / "labels.npy", labels.tolist())
    np.save(tmp_path / "features" / "features.npy", unit_length(features))
    (tmp_path / "features" / "embedding.json").write_text((ROOT / "tests/helpers/embedding.json").read_text())
    np.save(tmp_path / "processed" / "images.npy", rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
    save_strings(tmp_path / "processed" / "sha256.npy", [f"{row:064x}" for row in range(count)])
    (tmp_path / "processed" / "fit.txt").write_text("pad\n")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["index"]["refine"]["pca"] = 48
    params["index"]["target_recall"] = 0.95
    params["evaluate"] |= {"resamples": 100, "split_seeds": 2, "map_images": 100}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return tmp_path


def test_another_processor_writes_the_same_bytes(collection: Path) -> None:
    tried = list(anywhere.combinations(extremes=True))
    found, files = anywhere.differences(collection, collection / "params.yaml", ["auto", "hnsw"], tried)
    assert found == []
    assert {"auto/index/index.faiss", "hnsw/index/index.faiss", "auto/metrics.json", "auto/plots/map.csv"} <= {*files}


def test_what_differs_is_told(collection: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A run that reads another file than the first: its settings and its files are named."""
    monkeypatch.setattr(anywhere, "run", lambda settings, *rest: {"same": "1", "other": str(len(settings))})
    monkeypatch.setattr(sys, "argv", ["anywhere.py", "--extremes"])
    assert anywhere.main() == 1
    said = capsys.readouterr().out
    assert "| OPENBLAS_CORETYPE | Prescott | 1 | 1 |" in said
    assert "'FAISS_OPT_LEVEL': 'generic'" in said and said.count(": other\n") == 1
    assert "1 combinations, 0 of them wrote the same bytes" in said


def test_combinations_are_those_that_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anywhere, "cpu_features", lambda: "avx2 sse4_2")
    tried = list(anywhere.combinations(extremes=False))
    assert len(tried) == 4 * 2 * 2 * 2  # OpenBLAS but SkylakeX, FAISS but avx512, NumPy, threads
    assert {each["OPENBLAS_CORETYPE"] for each in tried} == {"Prescott", "Nehalem", "Haswell", "Zen"}
    assert {each["ONEDNN_MAX_CPU_ISA"] for each in tried} == {"SSE41", "AVX2"}
