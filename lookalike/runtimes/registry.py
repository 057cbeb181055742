"""How a network is run. A runtime is a module that loads the network files as a function from pixels to embeddings.

Importing such a module is cheap; `load` is what imports the libraries that compute, so that a run that finds everything
in the cache, or a mistake in the settings, need not wait for them.
"""

from lookalike.runtimes import openvino, tensorflow
from lookalike.runtimes.base import Choice, Embedder, Name, OutOfMemory, Precision, Runtime

__all__ = [
    "Choice", "Embedder", "Name", "OutOfMemory", "Precision", "Runtime", "chosen", "openvino", "runtime", "tensorflow",
]  # fmt: skip

RUNTIMES: dict[Name, Runtime] = {"tensorflow": tensorflow, "openvino": openvino}


def runtime(name: Name) -> Runtime:
    """Return the runtime of that name."""
    return RUNTIMES[name]


def chosen(wanted: Choice, precision: Precision) -> Name:
    """Resolve `auto`: a runtime that sees a GPU and has the precision, else OpenVINO on the CPU."""
    if wanted != "auto":
        return wanted
    if precision != "int8" and tensorflow.sees_gpu():
        return "tensorflow"
    return "openvino"
