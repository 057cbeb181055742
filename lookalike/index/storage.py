"""Number types in which an index stores vectors."""

from lookalike.index.base import Storage
from lookalike.refinement.faiss_setup import faiss

BYTES: dict[Storage, int] = {"float32": 4, "float16": 2, "int8": 1}  # bytes per dimension


def quantizer(storage: Storage) -> int:
    """Return FAISS's scalar quantiser. int8 divides each dimension's range in the training sample into 256 steps."""
    kinds = faiss.ScalarQuantizer
    return int({"float16": kinds.QT_fp16, "int8": kinds.QT_8bit}[storage])
