"""What every stage script does the same way: arguments, settings, notices, errors."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from lookalike.errors import LookalikeError


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
