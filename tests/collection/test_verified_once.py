"""What was verified is remembered, and nothing more than that."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lookalike.base import files, user_cache
from lookalike.collection import verify
from lookalike.collection.collection import Gallery
from tests.helpers.platforms import LINUX
from tests.helpers.traced_index import NAMES, refused


def memory_file() -> Path:
    """What remembers that files were right."""
    return next(user_cache.folder("verified").iterdir())


class Hashed(list[str]):
    """Names of the files that were hashed."""

    def taken(self) -> list[str]:
        names, self[:] = sorted(self), []
        return names


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Hashed:
    names = Hashed()

    def spy(path: Path) -> str:
        names.append(path.name)
        return files.file_digest(path)

    monkeypatch.setattr(verify, "file_digest", spy)
    return names


def test_a_second_opening_hashes_nothing(index: Path, hashed: Hashed) -> None:
    first = verify.verify(index)
    assert hashed.taken() == list(NAMES)
    assert verify.verify(index) == first
    Gallery(index, index.parent / "changes")
    assert hashed.taken() == []


def test_a_file_with_another_time_is_hashed_again(index: Path, hashed: Hashed) -> None:
    verify.verify(index)
    hashed.taken()
    os.utime(index / "index.faiss", ns=(1, 1))
    verify.verify(index)
    assert hashed.taken() == ["index.faiss"]
    verify.verify(index)
    assert hashed.taken() == []


@pytest.mark.parametrize("replace", [True, False], ids=["another file", "in place"])
def test_a_changed_byte_behind_the_old_size_and_time_is_noticed(replace: bool, index: Path, hashed: Hashed) -> None:
    verify.verify(index)
    hashed.taken()
    path = index / "index.faiss"
    before, content = path.stat(), path.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    while (
        path.stat().st_ctime_ns == before.st_ctime_ns
    ):  # the clock of a file system ticks a few hundred times a second
        path.chmod(0o600)
    if replace:
        (index.parent / "new").write_bytes(changed)
        (index.parent / "new").replace(path)
    else:
        path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert (after.st_ino != before.st_ino) == replace
    refused(index, f"{path} is not the file")
    assert hashed.taken() == ["index.faiss"]


def test_the_same_content_in_another_file_is_hashed_again(index: Path, hashed: Hashed) -> None:
    verify.verify(index)
    hashed.taken()
    path = index / "index.faiss"
    shutil.copy2(path, index.parent / "new")
    (index.parent / "new").replace(path)
    verify.verify(index)
    assert hashed.taken() == ["index.faiss"]


def test_a_remembered_file_is_hashed_again_for_another_trace(index: Path, hashed: Hashed) -> None:
    verify.verify(index)
    hashed.taken()
    content = json.loads(verify.trace_of(index).read_text())
    content["files"][0]["index.faiss"] = "0" * 64
    verify.trace_of(index).write_text(json.dumps(content))
    refused(index, "index.faiss is not the file", "expected 000000000000")
    assert hashed.taken() == ["index.faiss"]


def test_what_was_refused_is_not_remembered(index: Path, hashed: Hashed) -> None:
    path = index / "index.faiss"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    for _ in range(2):
        refused(index, "index.faiss is not the file")
        assert "index.faiss" in hashed.taken()


def test_two_indexes_of_one_name_are_remembered_side_by_side(
    index: Path, traced: tuple[Path, Path], hashed: Hashed
) -> None:
    verify.verify(index)
    verify.verify(traced[0])
    assert len(hashed.taken()) == 2 * len(NAMES)
    verify.verify(index)
    assert hashed.taken() == []


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"{", b"[]", b"3", b'{"index.faiss": 3}', b'{"index.faiss": [1, 2, 3]}', b"[" * 100_000],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_a_broken_memory_costs_a_verification_and_is_mended(content: bytes, index: Path, hashed: Hashed) -> None:
    verify.verify(index)
    memory_file().write_bytes(content)
    hashed.taken()
    verify.verify(index)
    assert hashed.taken() == list(NAMES)
    verify.verify(index)
    assert hashed.taken() == []


@pytest.mark.parametrize(
    "place", ["file/verified", pytest.param("/proc/verified", marks=LINUX)]
)  # neither permits a folder, not even to root
def test_where_nothing_can_be_remembered_it_is_verified_every_time(
    place: str, index: Path, hashed: Hashed, monkeypatch: pytest.MonkeyPatch
) -> None:
    (index.parent / "file").write_bytes(b"")
    monkeypatch.setenv("LOOKALIKE_CACHE", str(index.parent / place))
    for _ in range(2):
        verify.verify(index)
        assert hashed.taken() == list(NAMES)


def test_a_folder_in_the_place_of_the_memory_is_no_trouble(index: Path, hashed: Hashed) -> None:
    verify.verify(index)
    path = memory_file()
    path.unlink()
    path.mkdir()
    hashed.taken()
    verify.verify(index)
    assert hashed.taken() == list(NAMES)
