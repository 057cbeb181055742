"""What the library logs, as a list."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Kept(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


@contextmanager
def logged() -> Iterator[list[str]]:
    """Keep the messages of the block."""
    messages: list[str] = []
    handler, library = _Kept(messages), logging.getLogger("lookalike")
    before = library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        library.removeHandler(handler)
        library.setLevel(before)
