"""Downloading: resumed, retried, checked, atomic, kept; and reading archives without trusting them."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import filelock
import requests
import urllib3

from lookalike.base import user_cache
from lookalike.base.errors import LookalikeError
from lookalike.base.files import PARTIAL, file_digest
from lookalike.base.script import progress_bar

TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of the answer
BLOCK = 1 << 18  # bytes; an attempt that brought so many is progress
PACE, WINDOW = 1_000, 60.0  # a server that sends fewer bytes a second, for so many seconds, is given up
LARGEST = 1 << 34  # bytes of an archive; a body without an end must not fill the disk


def fetch(url: str, checksum: str, *, attempts: int = 5, backoff: float = 1.0) -> Path:
    """Return a local file with the bytes of `url`, verified against `checksum`.

    url       http(s), or file:// for a local copy, which is verified and used where it lies. The server may redirect to
              http(s) only.
    checksum  "md5:<hex>" or "sha256:<hex>".
    attempts  tries without progress before giving up; backoff doubles between them, from `backoff` seconds.

    An interrupted download goes on where it stopped if the server supports ranges. The file enters the cache only
    once it is whole and its checksum fits. Raises LookalikeError otherwise.
    """
    algorithm, expected = parse_checksum(checksum)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise LookalikeError(f"{url}: {error}; set download.url to a whole http:// or https:// address") from None
    if parts.scheme == "file":
        local = Path(unquote(parts.path))
        if not local.is_file():
            raise LookalikeError(f"download.url {url}: there is no such file")
        _verify(local, algorithm, expected, url)
        return local
    if parts.scheme not in ("http", "https"):
        raise LookalikeError(f"download.url {url}: use http://, https:// or file:///absolute/path")

    target = user_cache.folder("downloads") / f"{algorithm}-{expected}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{target}.lock"):  # two runs at once: the second finds the first one's file
        if target.exists() and file_digest(target, algorithm) == expected:
            user_cache.touch(target)
            return target
        partial = target.with_name(target.name + PARTIAL)
        resumed = _download(url, partial, attempts, backoff)
        if resumed and file_digest(partial, algorithm) != expected:
            partial.unlink()  # the beginning may be another file's, or the server's ranges wrong
            _download(url, partial, attempts, backoff)
        try:
            _verify(partial, algorithm, expected, url)
        except LookalikeError:
            partial.unlink()
            raise
        partial.replace(target)
    return target


def parse_checksum(checksum: str) -> tuple[str, str]:
    """Split "md5:<hex>" or "sha256:<hex>", lower-cased.

    >>> parse_checksum("MD5:3138E1922A9193BFA496528EDBBC45D0")
    ('md5', '3138e1922a9193bfa496528edbbc45d0')
    """
    algorithm, _, expected = checksum.lower().partition(":")
    lengths = {"md5": 32, "sha256": 64}
    if len(expected) != lengths.get(algorithm) or set(expected) - set("0123456789abcdef"):
        raise LookalikeError(
            f"download.checksum is {checksum!r}: write md5:<32 hex digits> or sha256:<64 hex digits> of the archive"
        )
    return algorithm, expected


def _verify(path: Path, algorithm: str, expected: str, url: str) -> None:
    actual = file_digest(path, algorithm)
    if actual != expected:
        raise LookalikeError(
            f"{url}: expected {algorithm}:{expected}, got {algorithm}:{actual} ({path.stat().st_size:,} bytes); "
            "nothing was unpacked. A damaged or another file: try again, or, if you trust it, set download.checksum"
        )


class _TooSlowError(requests.RequestException):
    """The server sends, but so little that it would take for ever."""


def _download(url: str, partial: Path, attempts: int, backoff: float) -> bool:
    """Bring `partial` to its end, in as many tries as it takes; returns whether any went on from a beginning."""
    failures, resumed = 0, False
    while True:
        before = _size(partial)
        resumed = resumed or before > 0
        try:
            _download_rest(url, partial)
            return resumed
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else None
            permanent = status is not None and 400 <= status < 500 and status not in (408, 425, 429)
            malformed = isinstance(error, (requests.TooManyRedirects, requests.exceptions.InvalidURL,
                                           requests.exceptions.InvalidSchema))  # fmt: skip
            if _size(partial) >= before + BLOCK:
                failures = 0  # it moved: a long download over a bad line may take many tries
            failures += 1
            if permanent or malformed or failures >= attempts:
                kept = f"; {_size(partial):,} bytes are kept, and the next run goes on from there"
                raise LookalikeError(
                    f"{url}: {_reason(error)} (tried {failures} times){kept if _size(partial) else ''}. Check the "
                    "network, or set download.url to a mirror or a file:///absolute/path"
                ) from None
            time.sleep(backoff * 2 ** (failures - 1))


def _download_rest(url: str, partial: Path) -> None:
    start = _size(partial)
    headers = {"Accept-Encoding": "identity"}  # a compressed answer's offsets would not be the file's
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        answered = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.RequestException:
        raise
    except ValueError as error:  # a malformed address, or one redirected to; requests wraps only some of them
        raise requests.exceptions.InvalidURL(str(error)) from None
    with answered as answer:
        if answer.status_code == 416 and start:  # nothing beyond what we have: it is whole, or not this file
            return
        answer.raise_for_status()
        if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            partial.unlink(missing_ok=True)  # the next try asks for all of it
            raise requests.RequestException("the server answered with another range than it was asked for")
        if answer.status_code != 206:
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        with (
            partial.open("ab" if start else "wb") as file,
            progress_bar("download", total, "B", unit_scale=True, initial=start) as bar,
        ):
            for piece in _pieces(answer):
                if file.tell() + len(piece) > LARGEST:
                    partial.unlink()
                    raise LookalikeError(
                        f"{url}: the server sent more than {LARGEST:,} bytes, and no archive is that large; nothing "
                        "was kept. Set download.url to a mirror or a file:///absolute/path"
                    )
                file.write(piece)
                bar.update(len(piece))


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    """The body as it arrives and was sent: a .tar.gz is often called `Content-Encoding: gzip`, and is not."""
    began, received = time.monotonic(), 0
    try:
        while piece := answer.raw.read1(BLOCK, decode_content=False):
            yield piece
            received += len(piece)
            waited = time.monotonic() - began
            if waited > WINDOW:
                if received < PACE * waited:
                    raise _TooSlowError(f"fewer than {PACE:,} bytes a second for {WINDOW:g} seconds")
                began, received = time.monotonic(), 0
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.ReadTimeout(error) from None
    except urllib3.exceptions.HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.TooManyRedirects):
        return "the server redirects in a circle"
    if error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout | requests.ReadTimeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error)
