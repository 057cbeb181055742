"""The state of a training, on disk so that a killed one goes on where it was."""

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
    """Where a training stands, beside its arrays."""

    epoch: int = 0  # that is under way
    step: int = 0  # of it, that are done
    loss: float = 0.0  # sum over those steps
    start: float = -1.0  # validation mAP before the first batch; -1 without validation
    best: float = -1.0  # the highest
    best_epoch: int = 0  # 1 for the first; 0: the network as it came
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)  # a row an epoch


def save(folder: Path, progress: Progress, arrays: dict[str, list[np.ndarray]]) -> None:
    """Write all of it at once: a kill leaves this state or the one before."""
    named: dict[str, Any] = {
        f"{name}/{number:04d}": value for name, values in arrays.items() for number, value in enumerate(values)
    }
    with new_file(folder / STATE_FILE) as partial, partial.open("wb") as file:
        np.savez(file, progress=np.array(json.dumps(asdict(progress))), **named)


def load(folder: Path) -> tuple[Progress, dict[str, list[np.ndarray]]] | None:
    """Read what `save` wrote; None if there is nothing, or nothing whole."""
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
        return None  # damaged from outside: everything it held can be computed again
    user_cache.touch(folder)
    return progress, arrays
