"""The user's cache folder, which keeps work between runs and clones; it is never a stage output."""

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import platformdirs

from lookalike.base.files import write_json

logger = logging.getLogger(__name__)

Found = TypeVar("Found", int, str)


def root() -> Path:
    """Return $LOOKALIKE_CACHE or, by default, the platform's cache folder of this user."""
    path = os.environ.get("LOOKALIKE_CACHE") or platformdirs.user_cache_dir("lookalike", appauthor=False)
    return Path(path).expanduser().absolute()


def touch(path: Path) -> None:
    """Set a file's modification time to now, if allowed; `prune` deletes what was not used for longest."""
    with suppress(OSError):
        os.utime(path)


def folder(kind: str) -> Path:
    """Return the folder of one kind of cached work; it may not exist yet.

    kind  "batch_sizes", "companies", "downloads", "embeddings", "frozen", "networks", "trainings" or "verified".
    """
    return root() / kind


def remembered(kind: str, name: str, find: Callable[[], Found]) -> Found:
    """Return the cached result of `find`, or call `find` and cache its result.

    name  the cache key.
    find  called without arguments.
    """
    path = folder(kind) / f"{name}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # not cached yet, or unreadable
        found: Found = json.loads(path.read_text(encoding="utf-8"))["found"]
        touch(path)
        return found
    found = find()
    try:
        write_json(path, {"found": found})
    except OSError as error:
        logger.warning("%s cannot be saved (%s), so it is measured again next time", path.name, error)
    return found
