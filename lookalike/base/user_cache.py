"""Where work is kept between runs and clones: a folder of the user's, never an output of a stage."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import platformdirs

from lookalike.base.files import write_json

Found = TypeVar("Found", int, str)


def root() -> Path:
    """$LOOKALIKE_CACHE, or the user's cache folder."""
    path = os.environ.get("LOOKALIKE_CACHE") or platformdirs.user_cache_dir("lookalike", appauthor=False)
    return Path(path).expanduser().absolute()


def touch(path: Path) -> None:
    """Note that something was used now, if it can be noted: `prune` goes by that."""
    with suppress(OSError):
        os.utime(path)


def folder(kind: str) -> Path:
    """The folder of one kind of kept work; it may not exist yet.

    kind  "batch_sizes", "companies", "downloads", "embeddings", "frozen", "networks", "trainings" or "verified".
    """
    return root() / kind


def remembered(
    kind: str, name: str, find: Callable[[], Found], tell: Callable[[str], None] = lambda message: None
) -> Found:
    """Return what was found out before, or find it out and keep it.

    name  tells apart what it was found out about.
    tell  is told of a folder where nothing can be kept.
    """
    path = folder(kind) / f"{name}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # not found out yet
        found: Found = json.loads(path.read_text(encoding="utf-8"))["found"]
        touch(path)
        return found
    found = find()
    try:
        write_json(path, {"found": found})
    except OSError as error:
        tell(str(error))
    return found
