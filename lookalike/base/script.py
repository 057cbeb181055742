"""Command-line handling shared by all stage scripts: arguments, settings, notices, errors."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.base.errors import LookalikeError
from lookalike.base.log import print_log


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows the script's header as its help and accepts `--params`."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings file (default: %(default)s in this folder)"
    )
    return result


def door(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for `python -m lookalike.<module>` that shows the module's header as its help."""
    return argparse.ArgumentParser(
        prog=f"python -m lookalike.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def notice(stage: str, message: str) -> None:
    """Print a message to stderr, prefixed with the stage."""
    from tqdm import tqdm

    tqdm.write(f"{stage}: {message}", file=sys.stderr)  # prints above a progress bar, if there is one


def run(stage: str, main: Callable[[], None]) -> None:
    """Run a stage; print an error that the user can fix in one line and exit with status 1.

    Any other exception is a bug and keeps its traceback.
    """
    print_log(stage)
    try:
        main()
    except LookalikeError as error:
        sys.exit(f"{stage}: error: {error}")
    except OSError as error:  # disk full, no permission, no such file: the message has errno and path
        sys.exit(f"{stage}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(stage: str, total: int | None, unit: str, **options: Any) -> "tqdm[Any]":
    """Return a progress bar on stderr, labelled with the stage, that shows rate and time left.

    Options go to tqdm; `unit_scale=True` with unit "B" counts bytes.
    """
    from tqdm import tqdm  # imported here: 13 ms saved by commands without a bar

    every = 0.2 if sys.stderr.isatty() else 10.0  # seconds between updates; fewer lines in a log file
    return tqdm(total=total, desc=stage, unit=unit, mininterval=every, dynamic_ncols=True, **options)
