"""Keras and TensorFlow, imported in one place and without a dozen lines of C++ log.

Slow to import: only `model`, `extract`, `finetune` and what they alone use may import this module.
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
    """Hold back what the block writes to file descriptor 2; show it if the block raises.

    No setting of TensorFlow's stops what it logs there while it is imported and first looks for a GPU.
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
    """Lets this thread's imports of some packages fail, unless they are loaded already."""

    def __init__(self, *names: str) -> None:
        self._names, self._thread = names, threading.get_ident()

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Raise ModuleNotFoundError for what is to be absent; other names are left to other finders."""
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


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # from here on: warnings and errors
os.environ["KERAS_BACKEND"] = "tensorflow"
# Keras can do without these, of which it needs nothing here; they are a third of the time that importing takes.
with _native_stderr_hidden(), _without("sklearn", "matplotlib", "pandas", "IPython"):
    import keras
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)  # or it would take all of the GPU's memory at once
# A user's ~/.keras/keras.json must not change a result, nor a GPU's habit of rounding float32 to 10 bits.
keras.config.set_floatx("float32")
keras.config.set_image_data_format("channels_last")
keras.config.set_epsilon(1e-7)
tf.config.experimental.enable_tensor_float_32_execution(False)


def usable(precision: str) -> bool:
    """Whether TensorFlow can convolve in a precision here.

    It takes bfloat16 for granted where the processor has the instructions, and ends in an error where oneDNN is told
    not to use them (ONEDNN_MAX_CPU_ISA).
    """
    try:
        tf.nn.conv2d(tf.zeros([1, 8, 8, 3], precision), tf.zeros([3, 3, 3, 4], precision), 1, "SAME")
    except (tf.errors.AbortedError, tf.errors.InternalError, tf.errors.NotFoundError, tf.errors.UnimplementedError):
        return False
    return True


__all__ = ["keras", "tf", "usable"]
