"""Runtime for TensorFlow, on the GPU if TensorFlow sees one.

XLA is not used: on a CPU it is slower (benchmarks/extraction.py), and on a GPU it was not measured.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from lookalike.artifacts.descriptions import ARCHITECTURE_FILE, WEIGHTS_FILE
from lookalike.base import machine
from lookalike.base.errors import LookalikeError
from lookalike.base.params import UNUSED
from lookalike.networks.vit_presets import TOWERS
from lookalike.runtimes.base import Embedder, OutOfMemory, Precision, installed

logger = logging.getLogger(__name__)

GPU_LIBRARIES = "pip install -r requirements/gpu.txt"
NETWORK_FILES: tuple[str, ...] = (ARCHITECTURE_FILE, WEIGHTS_FILE)
CODE: tuple[str, ...] = (
    "runtimes/tensorflow.py",
    "networks/backbones.py",
    "networks/vit_presets.py",
    "networks/vit.py",
    "networks/keras_setup.py",
    "extraction/extractor.py",
    "extraction/company.py",
)


def load(
    folder: Path, image_size: int, batch_size: int, precision: Precision, calibration: Path = Path(UNUSED)
) -> Embedder:
    """Load the network as in `Runtime.load`; float16 and bfloat16 are mixed: weights and pooling stay float32."""
    if precision == "int8":
        raise LookalikeError(
            "extract.precision is int8, which extract.runtime=tensorflow does not have; set the runtime to openvino"
        )
    from lookalike.networks import backbones
    from lookalike.networks.keras_setup import tf

    gpus = tf.config.list_physical_devices("GPU")
    if machine.gpu_names() and not gpus:
        _without_gpu(machine.gpu_names()[0])
    tf.config.experimental.enable_op_determinism()
    model = backbones.load(folder, image_size, precision)
    signature = tf.TensorSpec((batch_size, image_size, image_size, 3), tf.uint8)
    # Keras's layers do not need autograph, which would take half a second to find that out.
    compiled = tf.function(lambda pixels: model(pixels, training=False), input_signature=[signature], autograph=False)

    def embed(pixels: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(compiled(tf.constant(pixels)))
        except tf.errors.ResourceExhaustedError:
            raise OutOfMemory(
                f"a batch of {batch_size} images of {image_size} pixels does not fit into the memory of "
                f"{gpus[0].name if gpus else 'this machine'}; set a smaller extract.batch_size"
            ) from None

    return embed


def sees_gpu() -> bool:
    """Return whether TensorFlow sees a GPU; import TensorFlow only if there may be one.

    Logs why, if there is a GPU that is not used.
    """
    names, libraries = machine.gpu_names(), _cuda()
    if not libraries:
        if names:
            logger.info(f"{names[0]} is not used; for TensorFlow to use it: {GPU_LIBRARIES}")
        return False
    if not names and not any("metal" in library for library in libraries):
        return False
    from lookalike.networks.keras_setup import tf

    seen = bool(tf.config.list_physical_devices("GPU"))
    if names and not seen and not _hidden():
        logger.info(f"{names[0]} is not used: {_unseen(names[0])}")
    return seen


def _hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def _unseen(name: str) -> str:
    return (
        f"TensorFlow does not see {name}, though libraries for it are installed: look whether the driver answers "
        f"(nvidia-smi), and whether all libraries are there ({GPU_LIBRARIES}); or go on without it: "
        "CUDA_VISIBLE_DEVICES=-1"
    )


def _without_gpu(name: str) -> None:
    """Log that TensorFlow does not use this GPU; raise LookalikeError if that may be temporary."""
    if not _cuda():
        logger.info(f"{name} is not used; for TensorFlow to use it: {GPU_LIBRARIES}")
    elif not _hidden():
        raise LookalikeError(_unseen(name))  # the cache would take the CPU's embeddings for the GPU's


def _cuda() -> list[str]:
    packages = [f"nvidia-{name}-cu{cuda}" for cuda in (12, 13) for name in ("cudnn", "cublas")]
    found = []
    for package in [*packages, "tensorflow-metal"]:
        with suppress(LookalikeError):
            found.append(installed(package))
    return found


def version(precision: Precision, backbone: str) -> str:
    """Return the versions of TensorFlow, Keras, KerasHub if it has the backbone, and the GPU libraries installed."""
    hub = [installed("keras-hub", "requirements/vit.txt")] if backbone in TOWERS else []
    return ", ".join([installed("tensorflow"), installed("keras"), *hub, *_cuda()])


def device() -> str:
    """Describe the GPUs, the CPU and its cores, and the settings that choose their kernels."""
    settings = machine.environment("ONEDNN_", "DNNL_", "TF_", "XLA_", "CUDA_", "NVIDIA_", "OMP_")
    return "; ".join(
        [*machine.gpu_names(), machine.cpu_name(), machine.cpu_features(), f"{machine.cores()} cores", *settings]
    )
