"""Which designs come into question for a number of vectors and a memory."""

import pytest

from lookalike.base.errors import LookalikeError
from lookalike.index.build import Design
from lookalike.index.candidates import Wanted, candidates, make_index
from lookalike.index.flat import Flat
from lookalike.index.hnsw import Hnsw
from lookalike.index.ivf import Ivf
from tests.helpers.index_parts import GRAPH, LISTS, PLANS, exactly


def reasons(count: int, dim: int, kind: str = "auto", storage: str = "auto", memory: int = 0) -> list[str]:
    found = candidates(Wanted(kind, storage, memory, GRAPH, LISTS), count, dim)
    return [f"{design.kind} {design.storage}: {why}" for design, why in found]


def test_what_is_chosen_is_designed() -> None:
    made = {design.kind: design for design, _ in candidates(Wanted("auto", "auto", 0, GRAPH, LISTS), 1_000_000, 8)}
    assert made["hnsw"] == Design(kind="hnsw", storage="int8", neighbors=5, ef_construction=30)
    assert made["ivf"] == Design(kind="ivf", storage="int8", lists=4000)
    assert made["ivfpq"] == Design(kind="ivfpq", storage="int8", lists=4000, code_bytes=4)
    assert made["flat"] == Design(kind="flat", storage="int8")


def test_few_vectors_are_compared_one_by_one_first() -> None:
    quick = "65536 x 8 are compared one by one as fast as by an index, and none is missed"
    later = "what is quicker takes too much or finds too little"
    assert reasons(65_536, 8) == [
        f"flat float32: {quick}; 2.1 MB, no limit", f"hnsw float16: {later}; 4.8 MB, no limit",
        f"ivf float16: {later}; 2.1 MB, no limit", f"hnsw int8: {later}; 4.3 MB, no limit",
        f"ivf int8: {later}; 1.6 MB, no limit", f"flat float16: {later}; 1.0 MB, no limit",
        f"flat int8: {later}; 0.5 MB, no limit", f"ivfpq int8: {later}; 1.4 MB, no limit",
    ]  # fmt: skip
    assert [line.split(":")[0] for line in reasons(65_536, 8, storage="int8")] == [
        "flat int8", "hnsw int8", "ivf int8", "flat int8",
    ]  # fmt: skip


def test_many_are_linked_first_and_memory_limits() -> None:
    many = "65537 x 8 are too many to compare one by one"
    later = "what is quicker takes too much or finds too little"
    assert reasons(65_537, 8)[:2] == [
        f"hnsw float16: {many}; 4.8 MB, no limit", f"ivf float16: {later}; 2.1 MB, no limit"
    ]  # fmt: skip
    assert [line.split(";")[0] for line in reasons(65_537, 8, memory=2)] == [
        f"ivf int8: {later}", f"flat float16: {later}", f"flat int8: {later}", f"ivfpq int8: {later}"
    ]  # fmt: skip
    assert reasons(65_537, 8, memory=2)[-1].endswith("; 1.4 MB, of 2 allowed")
    assert reasons(125_000, 8, "flat", "int8", memory=1) == ["flat int8: as index.kind says; 1.0 MB, of 1 allowed"]
    assert reasons(10**10, 8, "flat") == ["flat float32: as index.kind says; 320000.0 MB, no limit"]
    with exactly(
        "index.memory is 1 MB, but 1000001 vectors of 1 dimensions take at least 1.0 MB as flat, int8; allow more, or "
        "set index.kind and index.storage to auto, or keep fewer dimensions (index.refine.pca)"
    ):
        reasons(1_000_001, 1, "flat", "int8", memory=1)
    with pytest.raises(LookalikeError, match=r" take at least 320000\.0 MB as "):
        reasons(10**10, 8, "flat", memory=1)


@pytest.mark.parametrize(
    "kind, storage", [("flat", "float32"), ("hnsw", "float16"), ("ivf", "float16"), ("ivfpq", "int8")]
)
def test_a_kind_has_its_storage(kind: str, storage: str) -> None:
    (line,) = reasons(20_000, 8, kind)
    assert line.startswith(f"{kind} {storage}: as index.kind says; ")
    assert reasons(20_000, 8, "flat", "int8") == ["flat int8: as index.kind says; 0.2 MB, no limit"]


def test_what_cannot_be_built_is_passed_over_or_named() -> None:
    assert [line.split()[0] for line in reasons(38, 8)] == ["flat", "hnsw", "hnsw", "flat", "flat"]  # too few for lists
    assert "ivf" in {line.split()[0] for line in reasons(39, 8)}
    assert "ivfpq" not in {line.split()[0] for line in reasons(9_983, 8)}
    assert "ivfpq" in {line.split()[0] for line in reasons(9_984, 8)}
    assert "ivfpq" not in {line.split()[0] for line in reasons(9_984, 9)}
    with exactly("index.ivf.code_bytes is 4, which does not divide 9 dimensions; choose another, or set index.kind to "
                 "auto"):  # fmt: skip
        reasons(9_984, 9, "ivfpq")
    with exactly("index.kind ivfpq learns 256 codes from 9984 images or more, not 9983; choose another, or set "
                 "index.kind to auto"):  # fmt: skip
        reasons(9_983, 8, "ivfpq")
    with exactly(
        "index.memory is 1 MB, but 1000000 vectors of 8 dimensions take at least 8.0 MB as auto, auto; allow more, or "
        "set index.kind and index.storage to auto, or keep fewer dimensions (index.refine.pca)"
    ):
        reasons(1_000_000, 8, memory=1)


def test_an_empty_index_is_of_its_design() -> None:
    for kind, made in (("flat", Flat), ("hnsw", Hnsw), ("ivf", Ivf)):
        index = make_index(PLANS[kind], 8)
        assert (type(index), index.design, index.dim, len(index)) == (made, PLANS[kind], 8, 0)
