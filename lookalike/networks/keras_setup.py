"""Keras and TensorFlow, configured. Import them from here, never directly.

Slow to import: only modules that `model`, `extract` and `finetune` alone use may import this one.
"""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder


@contextmanager
def _native_stderr_hidden() -> Iterator[None]:
    """Suppress the block's output to file descriptor 2, unless the block raises.

    TensorFlow logs a dozen lines there while it is imported and first looks for a GPU, and no setting stops it.
    """
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)


class _Absent(MetaPathFinder):
    """Finder that makes importing some packages raise ImportError in this thread, unless they are already loaded."""

    def __init__(self, *names: str) -> None:
        self._names, self._thread = names, threading.get_ident()

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Raise ModuleNotFoundError for these packages; leave other names to other finders."""
        if fullname in self._names and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{fullname} is left out", name=fullname)


@contextmanager
def _without(*names: str) -> Iterator[None]:
    absent = _Absent(*names)
    sys.meta_path.insert(0, absent)
    try:
        yield
    finally:
        sys.meta_path.remove(absent)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # show errors only
os.environ["KERAS_BACKEND"] = "tensorflow"
# Optional imports of Keras that are not needed here and take a third of its import time.
with _native_stderr_hidden(), _without("sklearn", "matplotlib", "pandas", "IPython"):
    import keras
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)  # otherwise TensorFlow allocates all of the GPU's memory
# Results must not depend on a user's ~/.keras/keras.json, nor on TF32, in which GPUs round float32 to 10 bits.
keras.config.set_floatx("float32")
keras.config.set_image_data_format("channels_last")
keras.config.set_epsilon(1e-7)
tf.config.experimental.enable_tensor_float_32_execution(False)


def usable(precision: str) -> bool:
    """Return whether TensorFlow can compute a convolution in this precision on this machine.

    The processor's features do not tell: TensorFlow fails in bfloat16 if oneDNN is told not to use the instructions
    (ONEDNN_MAX_CPU_ISA).
    """
    try:
        tf.nn.conv2d(tf.zeros([1, 8, 8, 3], precision), tf.zeros([3, 3, 3, 4], precision), 1, "SAME")
    except (tf.errors.AbortedError, tf.errors.InternalError, tf.errors.NotFoundError, tf.errors.UnimplementedError):
        return False
    return True


__all__ = ["keras", "tf", "usable"]
