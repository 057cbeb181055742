"""The cache of embeddings between runs, keyed by an image's pixels and everything that decides the embedding's bits.

There is one SQLite file for each way of embedding, a `Recipe`, with one row per image, keyed by the SHA-256 of its
pixels. The file is also the journal of a run: rows are committed every second, so that a killed run continues where it
stopped. SQLite's transactions are atomic; in addition each row has a checksum, and a row that fails it is ignored. A
damaged file, or one of another program, is set aside.

A cached embedding equals the one that would be computed, bit for bit. So a recipe rather names too much than too
little, which only costs a second computation.
"""

import hashlib
import json
import logging
import sqlite3
import threading
import time
import zlib
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np

from lookalike.base import user_cache
from lookalike.base.errors import LookalikeError

logger = logging.getLogger(__name__)

FORMAT = 1  # version of the file and of the recipe; part of the file's name
OURS = 0x4C4B414C  # "LKAL", the application id in the header of our files
SUFFIX = ".sqlite"
DAMAGED = ".damaged"
COMMIT_EVERY = 1.0  # seconds between commits; a kill loses as much work, and the batches in progress
LOOKUP = 500  # keys per query; SQLite's oldest limit is 999
WAIT = 60.0  # most seconds to wait for another process, which normally writes for milliseconds
SCHEMA = (
    "CREATE TABLE about (recipe TEXT NOT NULL)",
    "CREATE TABLE rows (pixels BLOB PRIMARY KEY, embedding BLOB NOT NULL, checksum INTEGER NOT NULL)",
)


@dataclass(frozen=True)
class Recipe:
    """Everything besides the pixels that decides the bits of an embedding."""

    backbone: str  # backbone, layer and pooling are for people; `network` covers them
    layer: str
    pooling: str
    network: str  # SHA-256 over the network files that the runtime reads, and model.json
    image_size: int
    runtime: str  # name and version of every library that computes
    precision: str
    batch_size: int
    calibration: str  # SHA-256 of int8's calibration set, or ""
    code: str  # SHA-256 over our modules that compute
    processor: str  # CPU, its features, GPU
    dim: int  # D

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over all fields."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()


class EmbeddingCache:
    """The cached embeddings of one recipe. Thread-safe, and processes may share its file.

    with EmbeddingCache(recipe) as cache: found = cache.get(keys)

    Raises LookalikeError when the disk is full; committed rows are kept, and the next run continues from them. After
    any other problem, work continues without saving, or with a new file, and the user is told.
    """

    def __init__(self, recipe: Recipe) -> None:
        """Open or create the file."""
        self.recipe = recipe
        self.path = user_cache.folder("embeddings") / f"{recipe.fingerprint[:32]}{SUFFIX}"
        self._writable = True
        self._waiting: dict[bytes, bytes] = {}
        self._committed = time.monotonic()
        self._lock = threading.RLock()
        self._file: sqlite3.Connection | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            if not self._writable:
                self._close()

    def get(self, keys: list[bytes]) -> dict[bytes, np.ndarray]:
        """Return the known embeddings, float32 (D,), by the SHA-256 of their images' pixels."""
        with self._lock:
            found = {key: self._waiting[key] for key in keys if key in self._waiting}
            rest = [key for key in keys if key not in found]
            for start in range(0, len(rest), LOOKUP):
                found |= self._select(rest[start : start + LOOKUP])
        return {key: np.frombuffer(row, np.float32) for key, row in found.items()}

    def put(self, key: bytes, embedding: np.ndarray) -> None:
        """Add an embedding, float32 (D,); it is on disk after the next `commit`."""
        with self._lock:
            self._waiting[key] = embedding.tobytes()

    def commit(self, *, now: bool = True) -> None:
        """Write the waiting rows in one transaction; with now=False only if the last commit is a second ago."""
        with self._lock:
            if not now and time.monotonic() - self._committed < COMMIT_EVERY:
                return
            rows = [(key, row, _checksum(key, row)) for key, row in self._waiting.items()]
            try:
                self._write(rows)
            except sqlite3.Error as error:
                self._failed(error)
                self._write(rows)  # into the new file, if a damaged one was set aside
            self._waiting.clear()
            self._committed = time.monotonic()

    def __enter__(self) -> "EmbeddingCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.commit()
        finally:
            self._close()

    def _open(self) -> None:
        file = self._file = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        file.execute("PRAGMA page_size = 65536")  # bytes, for a new file: large pages waste little with rows of some KB
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:  # read-only, or locked by another process
            self._failed(error)
        if _number(file) != OURS:
            if not self._writable or file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise sqlite3.DatabaseError("it is another program's")
            for statement in SCHEMA:
                file.execute(statement)
            file.execute(f"PRAGMA application_id = {OURS}")
            file.execute("INSERT INTO about VALUES (?)", [json.dumps(asdict(self.recipe))])
        if self._writable:
            file.execute("COMMIT")
            user_cache.touch(self.path)

    def _select(self, keys: list[bytes]) -> dict[bytes, bytes]:
        marks = ",".join("?" * len(keys))
        query = f"SELECT pixels, embedding, checksum FROM rows WHERE pixels IN ({marks})"  # noqa: S608  only "?"
        try:
            rows = self._file.execute(query, keys).fetchall() if self._file else []
        except sqlite3.Error as error:
            self._failed(error)
            return {}
        size = 4 * self.recipe.dim  # bytes
        return {key: row for key, row, checksum in rows if len(row) == size and checksum == _checksum(key, row)}

    def _write(self, rows: list[tuple[bytes, bytes, int]]) -> None:
        if rows and self._file and self._writable:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", rows)
            self._file.execute("COMMIT")

    def _failed(self, error: Exception) -> None:
        """Recover from an SQLite error: stop writing or begin a new file. Raises LookalikeError if the disk is full."""
        name = getattr(error, "sqlite_errorname", "")
        if self._file and self._file.in_transaction:
            self._file.rollback()
        if name == "SQLITE_READONLY_DBMOVED":  # the file was pruned while it was open
            self._close()
            self._open()
            return
        if name == "SQLITE_FULL":
            self._close()
            raise LookalikeError(
                f"{self.path.parent}: the disk is full. The embeddings computed so far are kept there; make room "
                "(list them: python -m lookalike.cli.cache), or set LOOKALIKE_CACHE to another folder, and run again"
            ) from None
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            self._set_aside(error)
        elif self._writable:
            self._writable = False
            _warn_once(
                f"{self.path.parent}: nothing can be saved there ({error}), so a killed run will start over; make it "
                "writable, or set LOOKALIKE_CACHE to a folder that is"
            )

    def _set_aside(self, error: Exception) -> None:
        self._close()
        try:
            for suffix in ("-journal", ""):  # the journal first: it must not be applied to a new file
                path = self.path.with_name(self.path.name + suffix)
                if path.exists():
                    path.replace(path.with_name(path.name + DAMAGED))
            _warn_once(f"{self.path} cannot be read ({error}); it was set aside as *{DAMAGED}, and a new one begun")
            self._open()
        except (OSError, sqlite3.Error) as denied:
            self._writable = False
            _warn_once(f"{self.path} cannot be read ({error}) nor set aside ({denied}); going on without it")

    def _close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None


def _number(file: sqlite3.Connection) -> int:
    return int(file.execute("PRAGMA application_id").fetchone()[0])


def _checksum(key: bytes, row: bytes) -> int:
    return zlib.crc32(row, zlib.crc32(key))


def describe(path: Path) -> str:
    """Describe in one line what a file in the cache's folder contains."""
    if path.suffix != SUFFIX:
        return f"{path.name}: set aside, or not ours"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=WAIT)) as file:
            if _number(file) != OURS:
                return f"{path.name}: not ours"
            recipe = json.loads(file.execute("SELECT recipe FROM about").fetchone()[0])
            (count,) = file.execute("SELECT count(*) FROM rows").fetchone()
    except (sqlite3.Error, ValueError, TypeError) as error:
        return f"{path.name}: cannot be read ({error})"
    names = ("backbone", "layer", "pooling", "image_size", "precision", "batch_size", "runtime")
    return f"{count} images by " + " ".join(str(recipe.get(name, "?")) for name in names)


@lru_cache
def _warn_once(message: str) -> None:
    logger.warning(message)
