"""Downloads: resumed, retried, verified, written atomically and cached."""

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

TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of the response
BLOCK = 1 << 18  # bytes read at a time; an attempt that received so many made progress
PACE, WINDOW = 1_000, 60.0  # an attempt ends if the server sends fewer than PACE bytes a second for WINDOW seconds
LARGEST = 1 << 34  # bytes of an archive, so that an endless response does not fill the disk


def fetch(url: str, checksum: str, *, attempts: int = 5, backoff: float = 1.0) -> Path:
    """Return a local file with the bytes of `url`, verified against `checksum`.

    url       http(s), where redirects may lead to http(s) only, or file:// for a local copy, which is used in place.
    checksum  "md5:<hex>" or "sha256:<hex>".
    attempts  number of tries without progress before giving up.
    backoff   seconds before the second try; doubles with every further try.

    An interrupted download is resumed if the server supports ranges. The file enters the cache only when it is complete
    and its checksum matches. Raises LookalikeError otherwise.
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
    with filelock.FileLock(f"{target}.lock"):  # of two simultaneous runs, the second uses the first one's file
        if target.exists() and file_digest(target, algorithm) == expected:
            user_cache.touch(target)
            return target
        partial = target.with_name(target.name + PARTIAL)
        resumed = _download(url, partial, attempts, backoff)
        if resumed and file_digest(partial, algorithm) != expected:
            partial.unlink()  # the resumed part may belong to another file, or the server's ranges may be wrong
            _download(url, partial, attempts, backoff)
        try:
            _verify(partial, algorithm, expected, url)
        except LookalikeError:
            partial.unlink()
            raise
        partial.replace(target)
    return target


def parse_checksum(checksum: str) -> tuple[str, str]:
    """Split "md5:<hex>" or "sha256:<hex>" into algorithm and digest, lower-cased.

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
            "nothing was unpacked. The file is damaged or not the expected one: try again, or, if you trust it, set "
            "download.checksum"
        )


class _TooSlowError(requests.RequestException):
    """A download so slow that it would hardly ever finish."""


def _download(url: str, partial: Path, attempts: int, backoff: float) -> bool:
    """Complete the file `partial`, in several tries if needed; return whether any try resumed an earlier one."""
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
            malformed = isinstance(
                error,
                requests.TooManyRedirects | requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema,
            )
            if _size(partial) >= before + BLOCK:
                failures = 0  # progress: a long download over a bad connection may take many tries
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
    headers = {"Accept-Encoding": "identity"}  # offsets in a compressed response would not be the file's
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        answered = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.RequestException:
        raise
    except ValueError as error:  # a malformed address, perhaps of a redirect; requests wraps only some of them
        raise requests.exceptions.InvalidURL(str(error)) from None
    with answered as answer:
        if answer.status_code == 416 and start:  # no bytes after ours: our file is complete, or another one
            return
        answer.raise_for_status()
        if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            partial.unlink(missing_ok=True)  # the next try requests the whole file
            raise requests.RequestException("the server answered with another range than requested")
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
    """Yield the body piece by piece, undecoded: servers often mark a .tar.gz wrongly as `Content-Encoding: gzip`."""
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
