"""The file of the cache of embeddings: damaged, full, locked, pruned."""

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lookalike.base import user_cache
from lookalike.base.errors import LookalikeError
from lookalike.cli import cache
from lookalike.extraction import cache as embedding_cache
from lookalike.extraction.cache import EmbeddingCache
from proof.patience import patience
from tests.helpers.cache_rows import RECIPE, keys_of, vectors
from tests.helpers.namespaces import read_only, unshared
from tests.helpers.small_network import RNG

pytestmark = pytest.mark.slow  # TensorFlow, DVC and kills


def fill(count: int = 50) -> Path:
    with EmbeddingCache(RECIPE) as cache:
        for key, row in zip(keys_of(count), vectors(count), strict=True):
            cache.put(key, row)
    return cache.path


def found(count: int = 50) -> int:
    """How many of the rows are there; what is there must be right."""
    with EmbeddingCache(RECIPE) as cache:
        known = cache.get(keys_of(count))
    for key, row in zip(keys_of(count), vectors(count), strict=True):
        assert key not in known or np.array_equal(known[key], row)
    return len(known)


def test_what_is_put_is_found(told: list[str]) -> None:
    fill()
    assert found() == 50
    assert told == []


@pytest.mark.parametrize("what", ["text", "empty", "truncated", "another program's", "random"])
def test_a_file_that_is_not_a_cache_is_set_aside(what: str, told: list[str]) -> None:
    path = fill()
    content = path.read_bytes()
    if what == "another program's":
        path.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE rows (pixels, embedding, checksum)")
        other.close()
    else:
        path.write_bytes({"text": b"hello", "empty": b"", "truncated": content[: len(content) // 2],
                          "random": RNG.bytes(len(content))}[what])  # fmt: skip
    left = path.read_bytes()
    assert found() == 0
    if what != "empty":
        assert len(told) == 1 and "set aside" in told[0]
        assert path.with_name(path.name + ".damaged").read_bytes() == left  # nothing is lost
    fill()
    assert found() == 50


def test_a_broken_file_that_cannot_be_set_aside_is_left_and_done_without(told: list[str]) -> None:
    path = fill()
    path.write_bytes(b"hello")
    path.with_name(f"{path.name}.damaged").mkdir()
    with EmbeddingCache(RECIPE) as kept:
        kept.put(keys_of(1)[0], vectors(1)[0])
        kept.commit()
        assert kept.get(keys_of(1)) == {}
    assert len(told) == 1 and re.search(
        r"\.sqlite cannot be read \(file is not a database\) nor set aside \(.*Is a directory.*\); going on without",
        told[0],
    )
    assert path.read_bytes() == b"hello"


@pytest.mark.parametrize(("lock", "known"), [("IMMEDIATE", 50), ("EXCLUSIVE", 0)])
def test_a_file_that_another_program_holds_is_read_if_it_may_be(
    monkeypatch: pytest.MonkeyPatch, lock: str, known: int, told: list[str]
) -> None:
    path = fill()
    monkeypatch.setattr(embedding_cache, "WAIT", 0.01)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"BEGIN {lock}")
        with EmbeddingCache(RECIPE) as kept:
            assert len(kept.get(keys_of(50))) == known
            kept.put(keys_of(51)[50], vectors(51)[50])
    assert len(told) == 1 and "nothing can be saved there (database is locked)" in told[0]
    assert "set LOOKALIKE_CACHE to a folder that is" in told[0]
    assert found(51) == 50  # as it was


def test_no_flipped_byte_gives_a_wrong_row() -> None:
    """Every 199th byte of the file is flipped in turn: rows are right or absent, and the cache can be used again."""
    path = fill()
    content = path.read_bytes()
    missing = 0
    for position in range(0, len(content), 199):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        missing += found() < 50
    assert missing > 0
    path.write_bytes(content)
    assert found() == 50


def test_a_row_of_another_length_is_absent() -> None:
    path = fill()
    with sqlite3.connect(path) as file:
        file.execute("UPDATE rows SET embedding = substr(embedding, 1, 8)")
    file.close()
    assert found() == 0


def test_two_processes_may_write_at_once(tmp_path: Path, told: list[str]) -> None:
    script = tmp_path / "write.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.helpers.cache_rows import RECIPE, keys_of, vectors\n"
        "from lookalike.extraction.cache import EmbeddingCache\n"
        "with EmbeddingCache(RECIPE) as cache:\n"
        "    for key, row in list(zip(keys_of(50), vectors(50)))[int(sys.argv[2])::2]:\n"
        "        cache.put(key, row); cache.commit()\n"
    )
    root = Path(__file__).parents[2]
    writers = [subprocess.Popen([sys.executable, script, root, str(n)]) for n in (0, 1)]
    assert [writer.wait(timeout=patience(120)) for writer in writers] == [0, 0]
    assert (found(), told) == (50, [])


WRITE = """
import sys; sys.path.insert(0, {root!r})
import numpy as np
from tests.helpers.cache_rows import RECIPE
from lookalike.base import script
from lookalike.extraction.cache import EmbeddingCache, Recipe
def main():
    with EmbeddingCache(RECIPE) as cache:
        for number in range(40_000):
            cache.put(number.to_bytes(32, 'big'), np.zeros(3, np.float32))
            if number % 500 == 0: cache.commit()
        print('to the end')
script.run('extract', main)
"""


@pytest.mark.parametrize("where", ["full", "read-only", "read-only and filled", "not a folder"])
def test_a_cache_that_cannot_be_written(tmp_path: Path, cache_folder: Path, where: str) -> None:
    script = tmp_path / "write.py"
    script.write_text(WRITE.format(root=str(Path(__file__).parents[2])))
    run = f"LOOKALIKE_CACHE={cache_folder} {sys.executable} {script}"
    if where == "not a folder":
        cache_folder.write_text("a file")
        done = subprocess.run(["sh", "-c", run], capture_output=True, text=True, check=False)
    elif where == "full":
        cache_folder.mkdir()
        done = unshared(f"mount -t tmpfs -o size=1m none {cache_folder} && {run}; status=$?; "
                        f"ls {cache_folder}/embeddings; exit $status")  # fmt: skip
        assert done.returncode == 1 and "to the end" not in done.stdout
        assert re.search(r"^extract: error: .*the disk is full\. The embeddings computed so far are kept", done.stderr)
        assert done.stderr.count("\n") == 1 and ".sqlite" in done.stdout
        return
    else:
        cache_folder.mkdir()
        if where == "read-only and filled":
            fill()
        done = unshared(f"{read_only(cache_folder)} && {run}")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("extract: ")]
    assert len(told) == 1 and "nothing can be saved there" in told[0] and "LOOKALIKE_CACHE" in told[0]
    assert "to the end" in done.stdout


def test_a_cache_that_is_pruned_while_it_is_written_goes_on_in_a_new_file(told: list[str]) -> None:
    with EmbeddingCache(RECIPE) as cache:
        for number, (key, row) in enumerate(zip(keys_of(50), vectors(50), strict=True)):
            cache.put(key, row)
            cache.commit()
            if number == 20:
                cache.path.unlink()
    assert told == []
    assert found() == 29


def test_a_full_disk_keeps_what_was_committed(cache_folder: Path) -> None:
    """SQLite is told that the disk ends here; what was there before is there afterwards."""
    fill()
    with EmbeddingCache(RECIPE) as cache:
        pages = cache._file.execute("PRAGMA page_count").fetchone()[0]
        cache._file.execute(f"PRAGMA max_page_count = {pages}")
        for number in range(10_000):
            cache.put(number.to_bytes(32, "big"), np.zeros(3, np.float32))
        with pytest.raises(LookalikeError, match="the disk is full"):
            cache.commit()
        cache._waiting.clear()
    assert found() == 50


def test_each_file_of_the_cache_is_listed_as_what_it_is(cache_folder: Path) -> None:
    kept = fill()
    folder = kept.parent
    for name in ("a.sqlite-journal", "b.sqlite.damaged", "c.sqlite"):
        (folder / name).write_text("hello")
    with closing(sqlite3.connect(folder / "d.sqlite")) as other:
        other.execute("CREATE TABLE rows (pixels)")
    (cache_folder / "networks").mkdir()
    (cache_folder / "networks/e.lock").touch()
    assert {item.path.name: item.what for item in cache.items()} == {  # what is part of another is not listed
        kept.name: "50 images by b l avg 64 float32 4 r",
        "b.sqlite.damaged": "b.sqlite.damaged: set aside, or not ours",
        "c.sqlite": "c.sqlite: cannot be read (file is not a database)",
        "d.sqlite": "d.sqlite: not ours",
    }


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert user_cache.folder("embeddings") == tmp_path / "cache/embeddings"
    monkeypatch.delenv("LOOKALIKE_CACHE")
    assert user_cache.folder("embeddings").parts[-2:] == ("lookalike", "embeddings")
    assert embedding_cache.FORMAT == 1
