"""int8: the same bytes again, one process at a time, and no report to its maker."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from lookalike.base.errors import LookalikeError
from lookalike.runtimes import quantization
from proof.patience import patience
from tests.helpers.small_network import PIXELS, make

pytestmark = pytest.mark.slow  # TensorFlow, DVC and kills


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_conversion_and_quantisation_give_the_same_bytes_again(tmp_path: Path, cache_folder: Path) -> None:
    one, two = (make(tmp_path / name, layer="block_6_expand_relu") for name in "ab")
    for name in ("network.xml", "network.bin", "model.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    np.save(tmp_path / "c.npy", PIXELS)
    first = quantization.quantized(one, 64, tmp_path / "c.npy")
    weights = first.with_suffix(".bin").read_bytes()
    assert quantization.quantized(two, 64, tmp_path / "c.npy") == first  # from the cache
    first.with_suffix(".bin").write_bytes(weights[:-1])  # damaged: made anew
    assert quantization.quantized(one, 64, tmp_path / "c.npy").with_suffix(".bin").read_bytes() == weights


def fake_network(folder: Path) -> Path:
    """Files that stand for a network where none is run."""
    folder.mkdir()
    for name in ("network.xml", "network.bin"):
        (folder / name).write_bytes(b"a network")
    np.save(folder / "c.npy", PIXELS[:2])
    return folder


def test_a_missing_nncf_is_named_and_nothing_is_kept(
    tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_network(tmp_path / "m")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(LookalikeError, match=r"NNCF cannot be imported \(.*\): pip install -r requirements\.txt"):
        quantization.quantized(folder, 64, folder / "c.npy")
    assert [path.suffix for path in (cache_folder / "networks").iterdir()] == [".lock"]


def test_of_two_runs_at_once_one_quantises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second asks while the first is at work, waits, and finds what that made."""
    folder, real = fake_network(tmp_path / "m"), quantization._whole
    made, results, asked = [], [], threading.Event()
    second = threading.Thread(target=lambda: results.append(quantization.quantized(folder, 64, folder / "c.npy")))

    def whole(target: Path) -> bool:
        result = real(target)
        if threading.current_thread() is second:
            asked.set()
        return result

    def quantize(_source: Path, _images: np.ndarray, target: Path) -> None:
        made.append(target)
        second.start()
        assert asked.wait(patience(60))
        target.write_bytes(b"eight bits")

    monkeypatch.setattr(quantization, "_whole", whole)
    monkeypatch.setattr(quantization, "_quantize", quantize)
    results.append(quantization.quantized(folder, 64, folder / "c.npy"))
    second.join(patience(60))
    assert len(made) == 1
    assert len(results) == 2 and results[0] == results[1] and results[0].read_bytes() == b"eight bits"


def test_nothing_reports_to_its_maker() -> None:
    """OpenVINO's converter and NNCF send usage reports unless shut off."""
    script = (
        "from lookalike.networks.openvino_setup import ov; import nncf, sys;"
        "from openvino.tools.ovc import telemetry_utils as t;"
        "from nncf.telemetry.wrapper import NNCFTelemetry, telemetry;"
        "print(isinstance(telemetry, NNCFTelemetry), t.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.stdout.split() == ["False", "openvino.tools.ovc.telemetry_stub"]
