"""Quantisation of a network to int8 after training, by NNCF, calibrated on a fixed set of images.

The calibration set is a file, uint8 (n, S, S, 3), so that a growing collection does not change the network that
embedded its older images. Quantising takes some seconds, and the quantised network is kept in the user's cache folder.
"""

import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from lookalike.artifacts import descriptions
from lookalike.base import machine, user_cache
from lookalike.base.errors import LookalikeError
from lookalike.base.files import file_digest, new_folder, write_json
from lookalike.base.params import UNUSED
from lookalike.runtimes.base import installed
from lookalike.runtimes.code_digest import code_digest

ABOUT_FILE = "about.json"
HOW = "set images apart for it (python -m lookalike.cli.calibration --help) and name the file in extract.calibration"


def load_calibration(path: Path, image_size: int) -> np.ndarray:
    """Open a calibration set: uint8 (n, S, S, 3), memory-mapped."""
    if path == Path(UNUSED):
        raise LookalikeError(f"extract.precision is int8, which needs calibration images; {HOW}")
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise LookalikeError(f"extract.calibration {path}: there is no such file; {HOW}") from None
    except (ValueError, EOFError, OSError) as error:
        raise LookalikeError(f"extract.calibration {path} is not a readable .npy file ({error}); {HOW}") from None
    size = (image_size, image_size, 3)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != size or not len(images):
        shape = getattr(images, "shape", "no array")
        raise LookalikeError(
            f"extract.calibration {path} is {shape}, not uint8 (n, {image_size}, {image_size}, 3) as "
            f"preprocess.image_size requires; {HOW}"
        )
    return images


def quantized(folder: Path, image_size: int, calibration: Path) -> Path:
    """Return the OpenVINO file of a network in int8, which is quantised unless it is in the cache.

    folder  folder of the network files.

    The same network, calibration set, libraries and processor give the same file.
    """
    images = load_calibration(calibration, image_size)
    made_from = {
        "network": [
            file_digest(folder / name) for name in (descriptions.OPENVINO_FILE, descriptions.OPENVINO_WEIGHTS_FILE)
        ],
        "calibration": file_digest(calibration),
        "image_size": image_size,
        "libraries": [installed(name) for name in ("openvino", "nncf")],
        "code": code_digest([Path(__file__)]),
        # Calibration runs the network on the processor.
        "processor": [machine.cpu_name(), machine.cpu_features(), *machine.environment("ONEDNN_", "DNNL_", "OV_")],
    }
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]
    target = user_cache.folder("networks") / name
    if not _whole(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{target}.lock"):  # of two simultaneous runs, the second uses the first one's file
                if not _whole(target):
                    _make(folder, images, target, made_from)
        except OSError as error:
            raise LookalikeError(
                f"{target.parent}: the int8 network cannot be kept there ({error}); make it writable and make room, or "
                "set LOOKALIKE_CACHE to another folder"
            ) from None
    user_cache.touch(target / ABOUT_FILE)
    return target / descriptions.OPENVINO_FILE


def _make(folder: Path, images: np.ndarray, target: Path, made_from: dict[str, Any]) -> None:
    with new_folder(target) as partial:
        _quantize(folder / descriptions.OPENVINO_FILE, images, partial / descriptions.OPENVINO_FILE)
        files = {path.name: file_digest(path) for path in sorted(partial.iterdir())}
        write_json(partial / ABOUT_FILE, {"made_from": made_from, "files": files})


def _whole(folder: Path) -> bool:
    try:
        files = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))["files"]
        return all(file_digest(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _quantize(source: Path, images: np.ndarray, target: Path) -> None:
    from lookalike.networks.openvino_setup import (
        ov,
        save,  # before nncf: importing this module turns off usage reports
    )

    try:
        import nncf
    except ImportError as error:
        raise LookalikeError(f"NNCF cannot be imported ({error}): pip install -r requirements.txt") from None
    nncf.set_log_level("ERROR")
    model = ov.Core().read_model(source)
    model.reshape([1, *images.shape[1:]])
    dataset = nncf.Dataset([np.array(image)[np.newaxis] for image in images])
    with contextlib.redirect_stdout(sys.stderr):  # NNCF prints progress bars
        quantized_model = nncf.quantize(model, dataset, subset_size=len(images))
    save(quantized_model, target)
