"""What every runtime offers."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from lookalike.base.errors import LookalikeError
from lookalike.base.params import UNUSED

Name = Literal["tensorflow", "openvino"]
Choice = Literal["auto", "tensorflow", "openvino"]
Precision = Literal["float32", "float16", "bfloat16", "int8"]
# uint8 (B, S, S, 3) -> float32 (B, D), for the one B that it was loaded for; OpenVINO, loaded for B = -1, takes any
Embedder = Callable[[np.ndarray], np.ndarray]


class OutOfMemory(LookalikeError):
    """A batch does not fit into the device's memory."""


class Runtime(Protocol):
    """What such a module offers."""

    NETWORK_FILES: tuple[str, ...]  # those of the network files that decide the result
    CODE: tuple[str, ...]  # those of our modules that decide it, relative to the library

    def load(
        self, folder: Path, image_size: int, batch_size: int, precision: Precision, calibration: Path = Path(UNUSED)
    ) -> Embedder:
        """Load the network files for batches of exactly `batch_size` images of `image_size` pixels a side.

        calibration  what int8 is calibrated on; not read at other precisions.

        Raises LookalikeError for a precision that the runtime or the machine lacks.
        """

    def version(self, precision: Precision, backbone: str) -> str:
        """Names and versions of the libraries that compute; raises LookalikeError if one is not installed."""

    def sees_gpu(self) -> bool:
        """Whether it would compute on a GPU here."""

    def device(self) -> str:
        """What computes, as far as the result's bits depend on it."""


def installed(package: str, requirements: str = "requirements.txt") -> str:
    """Name and version of a Python package; raises LookalikeError, naming its requirements, if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # 15 ms that a search need not wait for

    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        raise LookalikeError(f"{package} is not installed: pip install -r {requirements}") from None
