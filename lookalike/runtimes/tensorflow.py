"""Run a network with TensorFlow, on the GPU if TensorFlow sees one."""

from pathlib import Path

import numpy as np

from lookalike import backbones
from lookalike.runtimes import Embedder
from lookalike.tf import tf


def devices() -> list[str]:
    """Names of the GPUs that TensorFlow sees, or ["CPU"]."""
    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus] or ["CPU"]


def load(folder: Path, image_size: int, batch_size: int, precision: str) -> Embedder:
    """Load the network files for batches of exactly `batch_size` images of `image_size` pixels a side."""
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.experimental.enable_op_determinism()
    model = backbones.load(folder, image_size, precision)
    signature = tf.TensorSpec((batch_size, image_size, image_size, 3), tf.uint8)
    compiled = tf.function(lambda pixels: model(pixels, training=False), input_signature=[signature])

    def embed(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(tf.constant(pixels)))

    return embed


def version() -> str:
    """Name and version, for the record."""
    return f"tensorflow {tf.__version__}"
