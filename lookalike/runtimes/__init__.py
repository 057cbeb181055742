"""How a network is run. A runtime is a module that loads the network files as a function from pixels to embeddings.

Importing such a module is cheap; `load` is what imports the libraries that compute, so that a run that finds everything
in the cache, or a mistake in the settings, need not wait for them.
"""

from lookalike.runtimes import openvino, tensorflow
from lookalike.runtimes.base import Embedder, Name, OutOfMemory, Precision, Runtime

__all__ = ["Embedder", "Name", "OutOfMemory", "Precision", "Runtime", "openvino", "runtime", "tensorflow"]

RUNTIMES: dict[Name, Runtime] = {"tensorflow": tensorflow, "openvino": openvino}


def runtime(name: Name) -> Runtime:
    """Return the runtime of that name."""
    return RUNTIMES[name]
