"""Where images come from.

A data set is a module with `items(settings)`, which yields `Item`s in a fixed order, and `origin(settings)`, one line
that says where they are from.
"""

from collections.abc import Iterator

from lookalike.datasets import caltech101, digits, folder
from lookalike.datasets.base import Item, Settings

__all__ = ["Item", "Settings", "items", "origin"]

_MODULES = {"digits": digits, "caltech101": caltech101, "folder": folder}


def items(settings: Settings) -> Iterator[Item]:
    """Yield the images of the chosen data set, less `exclude`, at most `limit_per_class` of each class."""
    taken: dict[str, int] = {}
    for item in _MODULES[settings.dataset].items(settings):
        if item.label in settings.exclude:
            continue
        taken[item.label] = taken.get(item.label, 0) + 1
        if settings.limit_per_class and taken[item.label] > settings.limit_per_class:
            continue
        yield item


def origin(settings: Settings) -> str:
    """Where the images of the chosen data set are from, for the record."""
    return str(_MODULES[settings.dataset].origin(settings))
