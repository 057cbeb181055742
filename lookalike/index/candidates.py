"""Candidate indexes for N vectors of D dimensions within a memory limit, in order of preference."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lookalike.base.errors import LookalikeError
from lookalike.index.base import Design, Index, Kind, Storage
from lookalike.index.flat import Flat
from lookalike.index.hnsw import Hnsw
from lookalike.index.hnsw import Settings as HnswSettings
from lookalike.index.ivf import CODES, PER_LIST, Ivf
from lookalike.index.ivf import Settings as IvfSettings

KINDS: dict[Kind, type[Flat] | type[Hnsw] | type[Ivf]] = {"flat": Flat, "hnsw": Hnsw, "ivf": Ivf, "ivfpq": Ivf}
# Up to this many bytes of vectors, comparing all takes about as long as a graph search, and is exact (docs/scaling.md).
SCAN_BYTES = 2 << 20
# In order of preference: the fastest first, ivfpq last, because it seldom reaches a high recall.
PREFERRED: tuple[tuple[Kind, Storage], ...] = (
    ("hnsw", "float16"), ("ivf", "float16"), ("hnsw", "int8"), ("ivf", "int8"), ("flat", "float16"), ("flat", "int8"),
    ("ivfpq", "int8"),
)  # fmt: skip
DEFAULT_STORAGE: dict[Kind, Storage] = {"flat": "float32", "hnsw": "float16", "ivf": "float16", "ivfpq": "int8"}


@dataclass(frozen=True)
class Wanted:
    """Settings that fix the kind of index, or leave it open ("auto")."""

    kind: Kind | Literal["auto"]
    storage: Storage | Literal["auto"]
    memory: int  # megabytes; 0 for no limit
    hnsw: HnswSettings
    ivf: IvfSettings


def make_index(design: Design, dim: int) -> Index:
    """Return an empty, untrained index."""
    kind = KINDS[design.kind]
    return kind(design, kind.make(design, dim))


def predicted_bytes(design: Design, count: int, dim: int) -> int:
    """Predict the bytes of an index of `count` vectors, on disk and in memory."""
    return KINDS[design.kind].predicted_bytes(design, count, dim)


def candidates(wanted: Wanted, count: int, dim: int) -> Iterator[tuple[Design, str]]:
    """Yield the designs that fit into memory, in order of preference, each with its reason.

    Raises LookalikeError if none does, or if a product quantiser cannot divide the dimensions.
    """
    least = None
    fitting = 0
    for kind, storage, reason in _possible(wanted, count, dim):
        design = _design(kind, storage, wanted, count)
        size = predicted_bytes(design, count, dim)
        least = size if least is None else min(least, size)
        if wanted.memory and size > wanted.memory * 1_000_000:
            continue
        fitting += 1
        limit = f"of {wanted.memory} allowed" if wanted.memory else "no limit"
        yield design, f"{reason}; {size / 1e6:.1f} MB, {limit}"
    if not fitting:
        raise LookalikeError(
            f"index.memory is {wanted.memory} MB, but {count} vectors of {dim} dimensions take at least "
            f"{(least or 0) / 1e6:.1f} MB as {wanted.kind}, {wanted.storage}; allow more, or set index.kind and "
            "index.storage to auto, or keep fewer dimensions (index.refine.pca)"
        )


def _possible(wanted: Wanted, count: int, dim: int) -> Iterator[tuple[Kind, Storage, str]]:
    if wanted.kind != "auto":
        storage = DEFAULT_STORAGE[wanted.kind] if wanted.storage == "auto" else wanted.storage
        if wanted.kind == "ivfpq" and unfit(wanted, count, dim):
            raise LookalikeError(f"{unfit(wanted, count, dim)}; choose another, or set index.kind to auto")
        yield wanted.kind, storage, "as index.kind says"
        return
    reason, later = (
        f"{count} x {dim} are too many to compare one by one",
        "what is quicker takes too much or finds too little",
    )
    if count * dim * 4 <= SCAN_BYTES:
        quick = f"{count} x {dim} are compared one by one as fast as by an index, and none is missed"
        yield "flat", "float32" if wanted.storage == "auto" else wanted.storage, quick
        reason = later
    preferred = PREFERRED
    if wanted.storage != "auto":
        preferred = (("hnsw", wanted.storage), ("ivf", wanted.storage), ("flat", wanted.storage))
    for kind, storage in preferred:
        if (kind == "ivfpq" and unfit(wanted, count, dim)) or (kind == "ivf" and count < PER_LIST):
            continue
        yield kind, storage, reason
        reason = later


def unfit(wanted: Wanted, count: int, dim: int) -> str:
    """Return why ivfpq cannot be built; "" if it can."""
    if dim % wanted.ivf.code_bytes:
        return f"index.ivf.code_bytes is {wanted.ivf.code_bytes}, which does not divide {dim} dimensions"
    least = CODES * PER_LIST
    return f"index.kind ivfpq learns {CODES} codes from {least} images or more, not {count}" if count < least else ""


def _design(kind: Kind, storage: Storage, wanted: Wanted, count: int) -> Design:
    if kind == "hnsw":
        chosen = wanted.hnsw
        return Design(kind=kind, storage=storage, neighbors=chosen.neighbors, ef_construction=chosen.ef_construction)
    lists = wanted.ivf.lists_for(count) if kind in ("ivf", "ivfpq") else 0
    return Design(kind=kind, storage=storage, lists=lists, code_bytes=wanted.ivf.code_bytes if kind == "ivfpq" else 0)
