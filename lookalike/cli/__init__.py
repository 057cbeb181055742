"""The command `lookalike`: search a collection by picture, change it, and see what it is.

Imports base, artifacts, images, datasets, index, extraction, collection, report, api and ui.
"""

from lookalike.cli import (
    changing,
    searching,
    serving,  # their commands join the group
)
from lookalike.cli.common import app

__all__ = ["app", "changing", "searching", "serving"]
