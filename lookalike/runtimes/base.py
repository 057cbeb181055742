"""The interface of a runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from lookalike.base.errors import LookalikeError
from lookalike.base.params import UNUSED

Name = Literal["tensorflow", "openvino"]
Choice = Literal["auto", "tensorflow", "openvino"]
Precision = Literal["float32", "float16", "bfloat16", "int8"]
# uint8 (B, S, S, 3) -> float32 (B, D) for the B that it was loaded for; OpenVINO accepts any B if loaded for B = -1
Embedder = Callable[[np.ndarray], np.ndarray]


class OutOfMemory(LookalikeError):
    """A batch that does not fit into the device's memory."""


class Runtime(Protocol):
    """Interface of a runtime module."""

    NETWORK_FILES: tuple[str, ...]  # names of the network files that it reads
    CODE: tuple[str, ...]  # our modules that decide the result, relative to the library

    def load(
        self, folder: Path, image_size: int, batch_size: int, precision: Precision, calibration: Path = Path(UNUSED)
    ) -> Embedder:
        """Load the network files for batches of exactly `batch_size` images of `image_size` pixels a side.

        calibration  file of the images that int8 is calibrated on; not read at other precisions.

        Raises LookalikeError for a precision that the runtime or the machine does not have.
        """

    def version(self, precision: Precision, backbone: str) -> str:
        """Return names and versions of the libraries that compute. Raises LookalikeError if one is not installed."""

    def sees_gpu(self) -> bool:
        """Return whether it would compute on a GPU of this machine."""

    def device(self) -> str:
        """Describe the hardware and environment variables that decide the result's bits."""


def installed(package: str, requirements: str = "requirements.txt") -> str:
    """Return name and version of a Python package. Raises LookalikeError with the install command if it is missing."""
    from importlib.metadata import PackageNotFoundError, version  # imported here: 15 ms that a search does not need

    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        raise LookalikeError(f"{package} is not installed: pip install -r {requirements}") from None
