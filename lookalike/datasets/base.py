"""The settings that every data set takes and the items that it yields."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

from msgspec import Meta

from lookalike.base.params import Section


class Settings(Section, frozen=True):
    """Section `download` of params.yaml."""

    dataset: Literal["digits", "caltech101", "folder"]
    folder: str
    labels: str
    url: str
    checksum: str
    exclude: list[str]
    limit_per_class: Annotated[int, Meta(ge=0)]


@dataclass(frozen=True)
class Item:
    """One original file."""

    path: PurePosixPath  # relative to data/raw
    label: str  # class, "" if it has none
    content: bytes
