"""Progress bars: on a terminal they move, in a log they print a line now and then."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(stage: str, total: int | None, unit: str, **options: Any) -> "tqdm[Any]":
    """A bar on stderr, labelled with the stage, that shows rate and time left.

    Options go to tqdm; `unit_scale=True` with unit "B" counts bytes.
    """
    from tqdm import tqdm  # 13 ms that a command without a bar need not wait for

    every = 0.2 if sys.stderr.isatty() else 10.0  # seconds; a log file wants few lines
    return tqdm(total=total, desc=stage, unit=unit, mininterval=every, dynamic_ncols=True, **options)
