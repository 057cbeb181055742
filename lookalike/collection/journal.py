"""The journal of a collection's changes since its index was built: an SQLite file that survives any kill.

An event says that from now on a path has this picture, with its label, embedding and refined vector, or that it has
none. Events are appended, each whole or not at all; the state is what they come to, in order. The journal belongs to
one index, named by its fingerprint; `rebase` moves it to another. What is read is checked: a damaged file is an error.
"""

import hashlib
import json
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from msgspec import to_builtins

from lookalike.artifacts.descriptions import Embedding, parse_embedding
from lookalike.base.errors import LookalikeError

FILE = "journal.sqlite"
OURS = 0x4C4B4A4E  # "LKJN", in the header of every file of ours
WAIT = 30.0  # seconds for another process that is changing the collection
SCHEMA = (
    "CREATE TABLE about (fingerprint TEXT NOT NULL, embedding TEXT NOT NULL, folded INTEGER NOT NULL, "
    "first INTEGER NOT NULL, last INTEGER NOT NULL, checksum INTEGER NOT NULL)",
    "CREATE TABLE events (number INTEGER PRIMARY KEY, path TEXT NOT NULL, label TEXT NOT NULL, image TEXT NOT NULL, "
    "vector BLOB, embedding BLOB, checksum INTEGER NOT NULL)",
    "CREATE TABLE images (sha256 TEXT PRIMARY KEY, content BLOB NOT NULL)",
)


@dataclass(frozen=True)
class Event:
    """A change: `path` has this picture from now on; or none, where `image` is "".

    image      hex SHA-256 of the original file's bytes.
    vector     float32, (d,), refined, as it is compared.
    embedding  float32, (D,), as the network gave it.
    """

    path: str
    label: str = ""
    image: str = ""
    vector: np.ndarray | None = None
    embedding: np.ndarray | None = None
    number: int = 0


@dataclass(frozen=True)
class Bound:
    """The index that a journal belongs to, and its events: every number from `first` to `last`."""

    fingerprint: str  # the index's
    embedding: Embedding
    folded: int  # events up to this number are in the source folder
    first: int
    last: int


class Journal:
    """A file of events. Safe to share between processes."""

    def __init__(self, folder: Path) -> None:
        """Name the file; it is made by the first change."""
        self.path = folder / FILE
        self._lock = threading.Lock()
        self._watching: tuple[int, sqlite3.Connection] | None = None  # inode, and a connection that stays open

    def version(self) -> tuple[int, int] | None:
        """Return a value that differs after every change, by any process; None without a file. Takes microseconds."""
        try:
            inode = self.path.stat().st_ino
        except FileNotFoundError:
            return None
        with self._lock:
            try:
                if self._watching is None or self._watching[0] != inode:
                    self.close()
                    self._watching = inode, sqlite3.connect(self.path, timeout=WAIT, check_same_thread=False)
                return inode, int(self._watching[1].execute("PRAGMA data_version").fetchone()[0])
            except sqlite3.DatabaseError as error:
                raise self._failed(error) from None

    def close(self) -> None:
        """Close the file."""
        if self._watching:
            self._watching[1].close()
        self._watching = None

    def bound(self) -> Bound | None:
        """Read which index the journal belongs to; None while there has been no change."""
        if not self.path.exists():
            return None
        with self._open() as file:
            return _bound(file)

    def events(self, after: int = 0, fingerprint: str = "") -> list[Event]:
        """Read the events after a number, in order; raises LookalikeError where they are another index's than that."""
        if not self.path.exists():
            return []
        with self._open() as file:
            file.execute("BEGIN")  # what it belongs to and its events, of one moment
            bound = _bound(file)
            if bound and fingerprint and bound.fingerprint != fingerprint:
                raise LookalikeError(f"{self.path} was moved to another index meanwhile; open the new one and retry")
            return _events(file, bound, after) if bound else []

    def image(self, sha256: str) -> bytes:
        """Read the original bytes of an added picture."""
        with self._open() as file:
            return _image(file, sha256)

    @contextmanager
    def changing(self, fingerprint: str, embedding: Embedding) -> Iterator["Writer"]:
        """Lock out every other writer until the block ends well, which commits; otherwise nothing has happened.

        Raises LookalikeError where the journal belongs to another index, or another process has it for too long.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as file:
            file.execute("BEGIN IMMEDIATE")
            bound = _bound(file)
            if bound is None:
                for statement in SCHEMA:
                    file.execute(statement)
                file.execute(f"PRAGMA application_id = {OURS}")
                bound = Bound(fingerprint, embedding, folded=0, first=1, last=0)
            if bound.fingerprint != fingerprint:
                raise LookalikeError(
                    f"{self.path} belongs to another index, built meanwhile; open the new one and retry"
                )
            writer = Writer(file, bound)
            yield writer
            writer.close()
            file.execute("COMMIT")

    def rebase(
        self, fingerprint: str, embedding: Embedding, keep: Callable[[Event, bool], Event | None]
    ) -> tuple[int, int]:
        """Move the journal to another index: the last event of each path, as `keep` makes it anew, or without it.

        keep  takes an event and whether it was folded; returns it with vector and embedding for the new index, or None.

        Returns how many paths were moved and how many left out.
        """
        with self._open() as file:
            file.execute("BEGIN IMMEDIATE")
            bound = _bound(file)
            if bound is None or bound.fingerprint == fingerprint:  # another process was quicker
                return 0, 0
            last = {event.path: event for event in _events(file, bound, 0)}
            ordered = sorted(last.values(), key=lambda event: event.number)
            kept = [(event, keep(event, event.number <= bound.folded)) for event in ordered]
            file.execute("DELETE FROM events")
            writer = Writer(file, Bound(fingerprint, embedding, bound.last, first=bound.last + 1, last=bound.last))
            for old, new in kept:
                if new:
                    writer.append(new)
                    if old.number <= bound.folded:
                        writer.set_folded()
            writer.close()
            file.execute("DELETE FROM images WHERE sha256 NOT IN (SELECT image FROM events WHERE image <> '')")
            file.execute("COMMIT")
            moved = sum(new is not None for _, new in kept)
            return moved, len(kept) - moved

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)) as file:
                tables = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                if tables and file.execute("PRAGMA application_id").fetchone()[0] != OURS:
                    raise sqlite3.DatabaseError("it is another program's")
                yield file  # closing it rolls back what was not committed
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> LookalikeError:
        name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")  # which is: tables that are not ours
        if isinstance(error, sqlite3.OperationalError) and name != "SQLITE_ERROR":
            busy = name.startswith("SQLITE_BUSY")
            what = f"another process has been changing the collection for {WAIT:.0f} seconds" if busy else str(error)
            return LookalikeError(f"{self.path}: {what}; nothing was changed, try again")
        return LookalikeError(
            f"{self.path} cannot be read ({error}); restore it from a backup, or move it away: what was changed since "
            "the index was built is then forgotten"
        )


class Writer:
    """An open transaction."""

    def __init__(self, file: sqlite3.Connection, bound: Bound) -> None:
        """Take the connection whose transaction is open, and what the journal belongs to from now on."""
        self._file, self._bound = file, bound

    def append(self, event: Event, content: bytes = b"") -> None:
        """Append one event, and the bytes of its picture."""
        if content:
            self._file.execute("INSERT OR IGNORE INTO images VALUES (?, ?)", [event.image, content])
        self._bound = replace(self._bound, last=self._bound.last + 1)
        parts = (event.vector, event.embedding)
        vector, embedding = (None if part is None else part.astype(np.float32).tobytes() for part in parts)
        values = [self._bound.last, event.path, event.label, event.image, vector, embedding]
        self._file.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", [*values, _checksum(values)])

    def events(self, after: int) -> list[Event]:
        """Read events as Journal.events does, inside the transaction."""
        return _events(self._file, self._bound, after)

    def image(self, sha256: str) -> bytes:
        """Read an image as Journal.image does, inside the transaction."""
        return _image(self._file, sha256)

    def folded(self) -> int:
        """Return the number of the last event that is in the source folder."""
        return self._bound.folded

    def set_folded(self) -> None:
        """Record that every event so far is in the source folder."""
        self._bound = replace(self._bound, folded=self._bound.last)

    def close(self) -> None:
        """Write which index the journal belongs to."""
        bound = self._bound
        values = [bound.fingerprint, json.dumps(to_builtins(bound.embedding)), bound.folded, bound.first, bound.last]
        self._file.execute("DELETE FROM about")
        self._file.execute("INSERT INTO about VALUES (?, ?, ?, ?, ?, ?)", [*values, _checksum(values)])


def _bound(file: sqlite3.Connection) -> Bound | None:
    if not file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return None  # the first change was not committed
    row = file.execute("SELECT fingerprint, embedding, folded, first, last, checksum FROM about").fetchone()
    if row is None or row[-1] != _checksum(row[:-1]):
        raise sqlite3.DatabaseError("what it belongs to is damaged")
    fingerprint, text, folded, first, last, _ = row
    try:
        return Bound(fingerprint, parse_embedding(text), folded, first, last)
    except (ValueError, TypeError):
        raise sqlite3.DatabaseError("what it belongs to is damaged") from None


def _events(file: sqlite3.Connection, bound: Bound, after: int) -> list[Event]:
    rows = file.execute("SELECT * FROM events WHERE number > ? ORDER BY number", [after])
    found, number = [], max(after, bound.first - 1)
    for *values, checksum in rows:
        number += 1
        if values[0] != number or checksum != _checksum(values):
            raise sqlite3.DatabaseError(f"event {number} is damaged")
        _, path, label, image, *parts = values
        vector, embedding = (None if part is None else np.frombuffer(part, np.float32) for part in parts)
        found.append(Event(path, label, image, vector, embedding, number))
    if number != max(after, bound.last):
        raise sqlite3.DatabaseError(f"event {number + 1} is missing")
    return found


def _image(file: sqlite3.Connection, sha256: str) -> bytes:
    row = file.execute("SELECT content FROM images WHERE sha256 = ?", [sha256]).fetchone()
    if row is None or not isinstance(row[0], bytes) or hashlib.sha256(row[0]).hexdigest() != sha256:
        raise sqlite3.DatabaseError(f"picture {sha256} is damaged")
    return row[0]


def _checksum(values: Sequence[object]) -> int:
    """Compute the CRC-32 of a row."""
    result = 0
    for value in values:
        part = value if isinstance(value, bytes) else f"{value!r};".encode()
        result = zlib.crc32(part, result)
    return result
