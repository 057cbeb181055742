"""The data sets by name.

A data set is a module with `items(settings)`, which yields `Item`s in a fixed order, and `origin(settings)`, which
returns their source as one line.
"""

import logging
from collections.abc import Iterator

from lookalike.base.errors import LookalikeError
from lookalike.base.params import UNUSED
from lookalike.datasets import caltech101, digits, folder
from lookalike.datasets.base import Item, Settings

logger = logging.getLogger(__name__)

__all__ = ["Item", "Settings", "items", "origin"]

_MODULES = {"digits": digits, "caltech101": caltech101, "folder": folder}


def items(settings: Settings) -> Iterator[Item]:
    """Yield the images of the chosen data set, without `exclude`, at most `limit_per_class` of each class."""
    _check(settings)
    taken: dict[str, int] = {}
    left_out = set()
    for item in _MODULES[settings.dataset].items(settings):
        if item.label in settings.exclude:
            left_out.add(item.label)
            continue
        taken[item.label] = taken.get(item.label, 0) + 1
        if settings.limit_per_class and taken[item.label] > settings.limit_per_class:
            continue
        yield item
    unknown = set(settings.exclude) - left_out - {caltech101.BACKGROUND}
    if unknown:
        logger.warning(f"download.exclude names no class of {settings.dataset}: {', '.join(sorted(unknown))}")


def _check(settings: Settings) -> None:
    """Raise LookalikeError if a setting is given that only another data set reads."""
    meant_for = {"folder": "folder", "labels": "folder", "url": "caltech101", "checksum": "caltech101"}
    for key, dataset in meant_for.items():
        value = getattr(settings, key)
        if value not in ("", UNUSED) and settings.dataset != dataset:
            raise LookalikeError(
                f"download.{key} is {value!r}, but download.dataset is {settings.dataset}, which does not read it; "
                f"set download.dataset to {dataset}, or {key} back"
            )


def origin(settings: Settings) -> str:
    """Return the source of the chosen data set's images as one line, for data/raw.json."""
    return str(_MODULES[settings.dataset].origin(settings))
