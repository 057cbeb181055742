"""The log of the library, as a script or a command prints it. The library itself only logs."""

import logging
import sys


class _Lines(logging.Handler):
    """Prints each message on stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def print_log(name: str) -> None:
    """Print what the library logs from now on, one line a message, with `name` in front."""
    lines = _Lines()
    lines.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    library = logging.getLogger("lookalike")
    library.handlers = [lines]
    library.setLevel(logging.INFO)
