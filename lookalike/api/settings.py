"""Settings of a server."""

from dataclasses import dataclass
from pathlib import Path

from lookalike.base.errors import LookalikeError

TOKEN_LEAST = 16  # characters


@dataclass(frozen=True)
class Settings:
    """Settings of a server: the collection's folders, access, and limits.

    token    what every request but /health must bear; "" for none.
    origins  of web pages that may read answers (CORS).
    hosts    names that a request may be addressed to; empty for any.
    queue    searches and additions under way at one time; one more is turned away.
    batch    pictures embedded at one time, at most.
    """

    index: Path = Path("data/index")
    model: Path = Path("data/model")
    changes: Path = Path("data/changes")
    images: Path = Path("data/raw")
    token: str = ""
    origins: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    queue: int = 128
    batch: int = 16
    seconds: float = 10.0  # limit for decoding one picture
    upload_seconds: float = 30.0  # limit for receiving one

    def __post_init__(self) -> None:
        if self.token and (len(self.token) < TOKEN_LEAST or not self.token.isascii() or " " in self.token):
            raise LookalikeError(
                f"the token must have at least {TOKEN_LEAST} ASCII characters and no space; openssl rand -hex 16"
            )
