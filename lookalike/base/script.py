"""What every stage script does the same way: arguments, settings, notices, errors."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.base.errors import LookalikeError


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the script's header as its help and knows `--params`."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings file (default: %(default)s in this folder)"
    )
    return result


def door(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of `python -m lookalike.<module>` that shows the module's header as its help."""
    return argparse.ArgumentParser(
        prog=f"python -m lookalike.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def notice(stage: str, message: str) -> None:
    """Tell the user one thing worth knowing, on stderr, prefixed with the stage."""
    from tqdm import tqdm

    tqdm.write(f"{stage}: {message}", file=sys.stderr)  # above a progress bar, if there is one


def run(stage: str, main: Callable[[], None]) -> None:
    """Run a stage; turn what a user can mend into one line and exit status 1.

    Anything else is a defect of ours and keeps its traceback.
    """
    try:
        main()
    except LookalikeError as error:
        sys.exit(f"{stage}: error: {error}")
    except OSError as error:  # disk full, no permission, no such file: the message names errno and path
        sys.exit(f"{stage}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(stage: str, total: int | None, unit: str, **options: Any) -> "tqdm[Any]":
    """A bar on stderr, labelled with the stage, that shows rate and time left.

    Options go to tqdm; `unit_scale=True` with unit "B" counts bytes.
    """
    from tqdm import tqdm  # 13 ms that a command without a bar need not wait for

    every = 0.2 if sys.stderr.isatty() else 10.0  # seconds; a log file wants few lines
    return tqdm(total=total, desc=stage, unit=unit, mininterval=every, dynamic_ncols=True, **options)
