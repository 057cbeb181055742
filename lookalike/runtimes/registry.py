"""The runtimes by name. A runtime is a module that loads the network files as a function from pixels to embeddings.

Importing a runtime is fast; only `load` imports the libraries that compute. So they are not imported when the cache has
all embeddings, or when the settings are wrong.
"""

from lookalike.runtimes import openvino, tensorflow
from lookalike.runtimes.base import Choice, Embedder, Name, OutOfMemory, Precision, Runtime

__all__ = [
    "Choice",
    "Embedder",
    "Name",
    "OutOfMemory",
    "Precision",
    "Runtime",
    "chosen",
    "openvino",
    "runtime",
    "tensorflow",
]

RUNTIMES: dict[Name, Runtime] = {"tensorflow": tensorflow, "openvino": openvino}


def runtime(name: Name) -> Runtime:
    """Return the runtime with this name."""
    return RUNTIMES[name]


def chosen(wanted: Choice, precision: Precision) -> Name:
    """Resolve `auto`: TensorFlow if it sees a GPU and has the precision, else OpenVINO on the CPU."""
    if wanted != "auto":
        return wanted
    if precision != "int8" and tensorflow.sees_gpu():
        return "tensorflow"
    return "openvino"
