"""Checkpoints: the state of a training on disk, from which a killed training resumes."""

import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.base import user_cache
from lookalike.base.files import new_file

STATE_FILE = "state.npz"


@dataclass
class Progress:
    """The state of a training except its arrays."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    loss: float = 0.0  # sum of the loss over those steps
    start: float = -1.0  # validation mAP before the first batch; -1 without validation
    best: float = -1.0  # the highest validation mAP so far
    best_epoch: int = 0  # the epoch after which it was measured, counted from 1; 0 is the untrained network
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)  # figures of each finished epoch


def save(folder: Path, progress: Progress, arrays: dict[str, list[np.ndarray]]) -> None:
    """Write the state atomically: after a kill, the file holds this state or the previous one."""
    named: dict[str, Any] = {
        f"{name}/{number:04d}": value for name, values in arrays.items() for number, value in enumerate(values)
    }
    with new_file(folder / STATE_FILE) as partial, partial.open("wb") as file:
        np.savez(file, progress=np.array(json.dumps(asdict(progress))), **named)


def load(folder: Path) -> tuple[Progress, dict[str, list[np.ndarray]]] | None:
    """Read what `save` wrote; return None if there is no file or it is damaged."""
    path = folder / STATE_FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            progress = Progress(**json.loads(str(file["progress"])))
            arrays: dict[str, list[Any]] = {}
            for name in sorted(set(file.files) - {"progress"}):
                arrays.setdefault(name.split("/")[0], []).append(file[name])
    except FileNotFoundError:
        return None
    except (ValueError, OSError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None  # damaged from outside: the training starts over
    user_cache.touch(folder)
    return progress, arrays
