"""In how many bits an index keeps a vector's numbers."""

from lookalike.index.base import Storage
from lookalike.refinement.faiss_setup import faiss

BYTES: dict[Storage, int] = {"float32": 4, "float16": 2, "int8": 1}  # of a dimension


def quantizer(storage: Storage) -> int:
    """FAISS's name for float16 and int8; int8 spreads 256 steps over the range that each dimension has in a sample."""
    kinds = faiss.ScalarQuantizer
    return int({"float16": kinds.QT_fp16, "int8": kinds.QT_8bit}[storage])
