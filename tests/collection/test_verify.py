"""Nothing of an index is read before it is known to be what was built: changed files, lost files, false traces."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lookalike.artifacts.arrays import save_strings
from lookalike.base import files
from lookalike.base.errors import LookalikeError
from lookalike.collection import verify
from lookalike.collection.collection import Gallery
from lookalike.collection.query import Query
from lookalike.refinement.faiss_setup import faiss
from proof.patience import patience
from tests.helpers.platforms import LINUX
from tests.helpers.traced_index import COUNT, EMBEDDING, NAMES, ROOT, features, refused, trace

POSITIONS = 40  # of a file, at which a byte is changed


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may read what belongs to an index."""

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a file was read that had not been verified")

    monkeypatch.setattr(faiss, "read_index", read)
    monkeypatch.setattr(np, "load", read)
    for name in ("load_embedding", "map_names"):
        monkeypatch.setattr(f"lookalike.collection.live_index.{name}", read)


# --- what was built --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_the_stage_writes_is_accepted_and_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    source, folder = tmp_path / "features", tmp_path / "index"
    source.mkdir()
    np.save(source / "features.npy", np.repeat(features(0), 2, axis=0))
    save_strings(source / "image_paths.npy", [f"{row:03}.png" for row in range(2 * COUNT)])
    save_strings(source / "labels.npy", [""] * 2 * COUNT)
    EMBEDDING.save(source)
    settings = (ROOT / "params.yaml").read_text().replace("pca: 128", "pca: 8")
    (tmp_path / "params.yaml").write_text(settings)
    command = [sys.executable, ROOT / "stages" / "index.py", source, folder, "--params", tmp_path / "params.yaml"]
    subprocess.run(command, check=True, capture_output=True, timeout=patience(300))
    assert sorted(json.loads(verify.trace_of(folder).read_text())["files"][0]) == list(NAMES)
    assert len(verify.verify(folder)) == 64
    hits = Gallery(folder, tmp_path / "changes").search(features(0)[:1], Query(2))
    assert [hit.path for hit in hits[0]] == ["000.png", "001.png"]


def test_another_index_has_another_fingerprint(traced: tuple[Path, Path], index: Path) -> None:
    assert verify.verify(index) == verify.verify(traced[0]) != verify.verify(traced[1])


# --- what was changed ------------------------------------------------------------------------------------------------


def flipped(content: bytes) -> Iterator[bytes]:
    """The content with one byte changed: the first, the last, and some between."""
    for position in np.unique(np.linspace(0, len(content) - 1, POSITIONS).astype(int)).tolist():
        yield content[:position] + bytes([content[position] ^ (1 << position % 8)]) + content[position + 1 :]


def cut(content: bytes) -> Iterator[bytes]:
    for share in (0, 0.01, 0.5, 0.99):
        yield content[: int(share * len(content))]
    yield content[:-1]
    yield content + b"\0"


def noise(content: bytes) -> Iterator[bytes]:
    for seed in range(3):
        yield np.random.default_rng(seed).bytes(len(content))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [flipped, cut, noise])
@pytest.mark.usefixtures("unread")
def test_a_changed_file_is_named_and_nothing_is_read(
    name: str, damage: Callable[[bytes], Iterator[bytes]], index: Path
) -> None:
    path = index / name
    content = path.read_bytes()
    for changed in damage(content):
        path.write_bytes(changed)
        refused(index, f"{path} is not the file that {verify.trace_of(index)} describes", "so it was not opened")
    path.write_bytes(content)
    assert verify.verify(index)  # and it was nothing else that was wrong


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("unread")
def test_a_lost_file_is_named(name: str, index: Path) -> None:
    (index / name).unlink()
    refused(index, f"{index / name} does not exist; make it: dvc repro index")


@pytest.mark.parametrize("name", ["components.npy", "index.faiss", "mean.npy"])
@pytest.mark.usefixtures("unread")
def test_a_file_of_another_valid_index_is_named(name: str, index: Path, traced: tuple[Path, Path]) -> None:
    shutil.copy(traced[1] / name, index / name)
    refused(index, f"{index / name} is not the file")


@pytest.mark.usefixtures("unread")
def test_a_whole_other_index_is_refused(index: Path, traced: tuple[Path, Path]) -> None:
    shutil.rmtree(index)
    shutil.copytree(traced[1], index)
    refused(index, "is not the file")


@pytest.mark.usefixtures("unread")
def test_a_file_that_the_trace_does_not_name_is_refused(index: Path) -> None:
    content = json.loads(verify.trace_of(index).read_text())
    del content["files"][0]["index.faiss"]
    files.write_json(verify.trace_of(index), content)
    refused(index, f"{index / 'index.faiss'} is not in {verify.trace_of(index)}")


def test_what_a_file_manager_hides_in_the_folder_does_no_harm(index: Path) -> None:
    (index / ".DS_Store").write_bytes(b"x")
    assert verify.verify(index)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
@pytest.mark.usefixtures("unread")
def test_what_is_no_file_is_named(make: Callable[[Path], None], index: Path) -> None:
    (index / "index.faiss").unlink()
    make(index / "index.faiss")
    refused(index, f"{index / 'index.faiss'} cannot be read (not a regular file)")


OPEN_ALL = """
import json, sys
from pathlib import Path
import numpy as np
from lookalike.base.errors import LookalikeError
from lookalike.collection.collection import Gallery
from lookalike.collection.query import Query

folder, refused, opened = Path(sys.argv[1]), 0, 0
for path in sorted(folder.iterdir()):
    content = path.read_bytes()
    for position in np.unique(np.linspace(0, len(content) - 1, 40).astype(int)).tolist():
        for changed in (bytes([content[position] ^ 255]) + content[position + 1 :], b""):
            path.write_bytes(content[:position] + changed)
            try:
                Gallery(folder, folder.parent / "changes")
                opened += 1
            except LookalikeError:
                refused += 1
    path.write_bytes(content)
hits = Gallery(folder, folder.parent / "changes").similar("000.png", Query(5))
print(json.dumps({"refused": refused, "opened": opened, "hits": len(hits)}))
"""


@pytest.mark.slow
def test_one_process_outlives_every_changed_file(index: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, index], capture_output=True, text=True, env=environment, timeout=patience(300)
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts.pop("refused") >= 2 * 7 * POSITIONS
    assert counts == {"opened": 0, "hits": 5}


# --- the trace -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unread")
def test_without_a_trace_nothing_is_opened(index: Path) -> None:
    verify.trace_of(index).unlink()
    refused(index, f"{verify.trace_of(index)} does not exist, so nothing says whether {index} can be trusted")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", f"{tmp_path / 'nowhere'} does not exist; make it: dvc repro index")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"null", b"[]", b'"files"', b"{}", b'{"files": {}}', b'{"files": []}', b'{"files": 3}',
        b'{"files": {"index.faiss": 3}}', b'{"files": {"index.faiss": null}}', b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
@pytest.mark.usefixtures("unread")
def test_a_trace_without_digests_is_named(content: bytes, index: Path) -> None:
    verify.trace_of(index).write_bytes(content)
    refused(index, f"{verify.trace_of(index)} has no digests of the files in {index}")


@pytest.mark.usefixtures("unread")
def test_a_trace_that_is_a_folder_is_named(index: Path) -> None:
    verify.trace_of(index).unlink()
    verify.trace_of(index).mkdir()
    refused(index, f"{verify.trace_of(index)} has no digests")


def test_a_trace_that_is_gone_is_missed_by_who_has_the_index_open(index: Path) -> None:
    gallery, path = Gallery(index, index.parent / "changes"), verify.trace_of(index)
    content = path.read_bytes()
    path.unlink()
    for _ in range(2):
        with pytest.raises(LookalikeError, match=r"index\.json does not exist, so nothing says whether .* get it from"):
            gallery.search(features(0)[:1], Query(2))
    path.write_bytes(content)  # as git checkout does
    assert gallery.search(features(0)[:1], Query(1))[0][0].path == "000.png"


@pytest.mark.parametrize("content", [b"{", b"\xff", b"3", b"null", b"[" * 100_000, None], ids=lambda one: repr(one)[:9])
def test_a_broken_trace_is_one_to_be_verified(content: bytes | None, index: Path) -> None:
    """A network whose trace cannot be read is not taken for one that needs none."""
    assert verify.has_digests(index)
    path = verify.trace_of(index)
    path.unlink()
    assert not verify.has_digests(index)
    path.mkdir() if content is None else path.write_bytes(content)
    assert verify.has_digests(index)
    with pytest.raises(LookalikeError, match=r"index\.json has no digests of the files in .*: lookalike bundle$"):
        verify.verify(index, remedy="lookalike bundle")


def test_vectors_and_paths_of_different_number_are_refused(index: Path) -> None:
    """Each as its digest says, but not made together."""
    save_strings(index / "image_paths.npy", [f"{row:03}.png" for row in range(COUNT - 1)])
    trace(index)
    refused(index, f"{index} has {COUNT} vectors but {COUNT - 1} paths", "make it anew: dvc repro --force index")


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "/etc/passwd", "a/b", "./index.faiss", "a\nb", "a\0b", "\ud800"], ids=repr
)
@pytest.mark.usefixtures("unread")
def test_a_trace_may_only_name_files_of_the_folder(name: str, index: Path) -> None:
    (index.parent / "x").write_bytes(b"")  # so that what it points to is there
    content = json.loads(verify.trace_of(index).read_text())
    content["files"][0][name] = files.file_digest(index.parent / "x")
    verify.trace_of(index).write_text(json.dumps(content))
    refused(index, f"{verify.trace_of(index)} names {name!r}, which is no file in {index}")


# --- a trace that vouches for anything -------------------------------------------------------------------------------


HOSTILE = """
import collections, json, os, random, resource, signal, sys
from pathlib import Path
import numpy as np
from lookalike.base import files
from lookalike.collection import verify
from lookalike.index import files as indexes
from lookalike.base.errors import LookalikeError

folder, count = Path(sys.argv[1]), int(sys.argv[2])
path, outcomes = folder / "index.faiss", collections.Counter()
content = path.read_bytes()
for seed in range(count):
    draw, changed = random.Random(seed), bytearray(content)
    changed[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    path.write_bytes(changed)
    files.write_json(verify.trace_of(folder), {"files": [files.digests(folder)]})
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # a size that was changed may ask for everything
        signal.alarm(600)
        code = 5
        try:
            verify.verify(folder)
            index = indexes.open_file(folder, mapped=seed % 2 == 0)
            index.search(index.vectors(np.arange(5)), 3)
            code = 3
        except LookalikeError:
            code = 4
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    died = os.WIFSIGNALED(status)
    outcomes["crash" if died else {3: "answer", 4: "refusal", 5: "traceback"}[os.WEXITSTATUS(status)]] += 1
print(json.dumps(outcomes))
"""


@pytest.mark.slow
@LINUX
def test_hostile_bytes_behind_a_trace_that_vouches_for_them_are_refused_or_answered(index: Path) -> None:
    """Who can write both can make the search answer anything; but neither crash nor error message is a mystery."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, index, "60"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=patience(600),
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert sum(outcomes.values()) == 60
    assert outcomes["refusal"] >= 1, outcomes  # FAISS notices some
    assert outcomes["answer"] >= 1, outcomes  # and not others: hence the digests
    assert "traceback" not in outcomes, outcomes
