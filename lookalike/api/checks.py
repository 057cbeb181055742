"""Whether the collection can answer what is asked of it, and problems where it cannot."""

import os
from pathlib import PurePosixPath

import numpy as np

from lookalike.api import ids, problems
from lookalike.api.problems import Problem
from lookalike.base.errors import LookalikeError
from lookalike.collection.collection import Gallery, LabelError
from lookalike.collection.names import check_name
from lookalike.collection.snapshot import State
from lookalike.index.tags import TextError

NAME_MOST = 200  # characters of a name, a label
ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # by content; of the others, the format's name


def known(state: State, item: str) -> str:
    """The path of an id, if the collection has it; nothing else is done with it before."""
    path = ids.path(item)
    if path is None or path not in state:
        raise Problem(problems.UNKNOWN_ITEM, "no image of the collection has this id; ids are as a search shows them")
    return path


def seen(gallery: Gallery, vector: np.ndarray) -> None:
    """Raise Problem for a picture that has no direction: all black, say."""
    try:
        gallery.refinement.project(vector[np.newaxis])
    except LookalikeError:
        raise Problem(
            problems.FEATURELESS, "the picture's embedding has no direction, so it has no similarity with anything"
        ) from None


def explained(error: LookalikeError) -> Exception:
    """A class or words that no image has are the client's mistake; anything else is not."""
    return Problem(problems.INVALID, str(error)) if isinstance(error, LabelError | TextError) else error


def named_by_content(digest: str, kind: str) -> str:
    """The name of a new image that came without one: its bytes' hash, and an ending for its format."""
    return digest[:32] + ENDINGS.get(kind, f".{kind.lower()}")


def path_of(label: str, name: str) -> str:
    """The path of a new image: its class, and the last part of its name."""
    last = PurePosixPath(name.replace("\\", "/")).name
    path = f"{label}/{last}".removeprefix("/")
    if not path.isprintable() or len(os.fsencode(last)) > NAME_MOST:
        raise Problem(problems.INVALID, f"the name must be printable, and at most {NAME_MOST} bytes long")
    try:
        check_name(path, label)
    except LookalikeError as error:
        raise Problem(problems.INVALID, str(error)) from None
    return path
