"""Where work is kept between runs and clones: a folder of the user's, never an output of a stage."""

import os
from contextlib import suppress
from pathlib import Path

import platformdirs


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

    kind  "batch_sizes", "downloads", "embeddings", "frozen", "networks", "trainings" or "verified".
    """
    return root() / kind
