"""Downloads against a real server on loopback that misbehaves."""

import gzip
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest

from lookalike.base import user_cache
from lookalike.base.errors import LookalikeError
from lookalike.datasets.download import fetch, parse_checksum

CONTENT = np.random.default_rng(0).bytes(3_000_000)
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"

Answer = Callable[[BaseHTTPRequestHandler, int], None]


class Server:
    """Answers each request with the next of `answers`, the last one for ever; records the Range headers."""

    def __init__(self, *answers: Answer) -> None:
        outer = self
        self.ranges: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number = len(outer.ranges)
                outer.ranges.append(self.headers["Range"])
                start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                answers[min(number, len(answers) - 1)](self, start)

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/file.zip"
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def whole(handler: BaseHTTPRequestHandler, _start: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    handler.wfile.write(CONTENT)


def rest(handler: BaseHTTPRequestHandler, start: int, content: bytes = CONTENT) -> None:
    if start >= len(content):
        handler.send_response(416)
        handler.end_headers()
        return
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    handler.wfile.write(content[start:])


def cut_after(count: int) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, start: int) -> None:
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_header("Content-Length", str(len(CONTENT) - start))
        handler.end_headers()
        handler.wfile.write(CONTENT[start : start + count])
        handler.wfile.flush()
        handler.connection.close()

    return answer


def status(code: int) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, _start: int) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    yield user_cache.folder("downloads")


def get(url: str, checksum: str = CHECKSUM) -> Path:
    return fetch(url, checksum, attempts=3, backoff=0.01)


def finished(cache: Path) -> list[Path]:
    """The archives in the cache: what a later run would take as good."""
    return [path for path in cache.glob("*") if path.suffix not in (".lock", ".partial")]


def test_a_download_is_kept_and_not_repeated() -> None:
    with Server(whole) as server:
        assert get(server.url).read_bytes() == CONTENT
        assert get(server.url).read_bytes() == CONTENT
        assert len(server.ranges) == 1


def test_a_damaged_cache_is_not_used(cache: Path) -> None:
    with Server(whole) as server:
        get(server.url).write_bytes(b"damaged")
        assert get(server.url).read_bytes() == CONTENT


def test_a_cut_download_goes_on_where_it_was() -> None:
    with Server(cut_after(1_000_000), cut_after(500_000), rest) as server:
        assert get(server.url).read_bytes() == CONTENT
        assert server.ranges[0] is None
        starts = [int(value.removeprefix("bytes=").removesuffix("-")) for value in server.ranges[1:]]
        assert 0 < starts[0] <= 1_000_000
        assert starts[0] < starts[1] <= 1_500_000


def test_the_next_run_goes_on_where_a_failed_one_was(cache: Path) -> None:
    with Server(cut_after(1_000_000), status(503)) as server:
        with pytest.raises(LookalikeError, match=r"answered 503 .*bytes are kept"):
            get(server.url)
    assert finished(cache) == []
    with Server(rest) as server:
        assert get(server.url).read_bytes() == CONTENT
        assert server.ranges[0] is not None


def test_a_server_without_ranges_sends_it_all_again() -> None:
    with Server(cut_after(1_000_000), whole) as server:
        assert get(server.url).read_bytes() == CONTENT


def test_a_partial_file_of_something_else_is_dropped(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / f"{CHECKSUM.replace(':', '-')}.partial").write_bytes(b"x" * 1000)
    with Server(rest) as server:
        assert get(server.url).read_bytes() == CONTENT
        assert server.ranges == ["bytes=1000-", None]


def test_a_partial_file_longer_than_the_whole_is_dropped(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / f"{CHECKSUM.replace(':', '-')}.partial").write_bytes(b"x" * (len(CONTENT) + 1))
    with Server(rest) as server:
        assert get(server.url).read_bytes() == CONTENT


def test_server_errors_are_retried() -> None:
    with Server(status(500), status(503), whole) as server:
        assert get(server.url).read_bytes() == CONTENT


def test_a_client_error_is_not_retried() -> None:
    with Server(status(404)) as server:
        with pytest.raises(LookalikeError, match=r"file\.zip: the server answered 404 Not Found \(tried 1 times\)"):
            get(server.url)
        assert len(server.ranges) == 1


def test_wrong_bytes_never_enter_the_cache(cache: Path) -> None:
    wrong = "sha256:" + "0" * 64
    with Server(whole) as server, pytest.raises(LookalikeError, match=f"expected {wrong}, got {CHECKSUM}"):
        get(server.url, wrong)
    assert [path for path in cache.glob("*") if path.suffix != ".lock"] == []


def test_no_server_is_said_in_one_line() -> None:
    with Server(whole) as server:
        url = server.url
    with pytest.raises(LookalikeError, match=r"no connection \(tried 3 times\)") as caught:
        get(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://[mirror/x.zip", "http://data..caltech.edu/x"])
def test_a_malformed_address_is_named(url: str) -> None:
    with pytest.raises(LookalikeError, match=r"set download\.url to") as caught:
        get(url)
    assert str(caught.value).startswith(f"{url}: ") and "\n" not in str(caught.value)


def test_a_local_file_is_verified_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "a file.zip"
    path.write_bytes(CONTENT)
    assert get(path.as_uri()) == path
    with pytest.raises(LookalikeError, match="got sha256:"):
        get(path.as_uri(), "sha256:" + "0" * 64)
    with pytest.raises(LookalikeError, match="there is no such file"):
        get((tmp_path / "none.zip").as_uri())
    with pytest.raises(LookalikeError, match="use http://, https:// or file:///absolute/path"):
        get("ftp://localhost/x")


@pytest.mark.parametrize("text", ["", "sha1:00", "md5:xyz", "md5:" + "0" * 31, "0" * 32])
def test_a_malformed_checksum_is_named(text: str) -> None:
    with pytest.raises(LookalikeError, match=r"download\.checksum is"):
        parse_checksum(text)


def sends(status: int, *pieces: bytes, pause: float = 0.0, endless: bool = False, **headers: str) -> Answer:
    """An answer of these headers and pieces; `endless` sends the last piece for ever."""

    def answer(handler: BaseHTTPRequestHandler, _start: int) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        with suppress(OSError):  # who asked has gone
            for piece in chain(pieces, repeat(pieces[-1])) if endless else pieces:
                handler.wfile.write(piece)
                handler.wfile.flush()
                time.sleep(pause)
        handler.close_connection = True

    return answer


def chunked(content: bytes, *, end: bool) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content) + (b"0\r\n\r\n" if end else b"")


LENGTH = str(len(CONTENT))
RIGHT = {
    "no length at all": (sends(200, CONTENT),),
    "chunks": (
        sends(200, chunked(CONTENT[:7], end=False), chunked(CONTENT[7:], end=True), Transfer_Encoding="chunked"),
    ),
    "chunks without an end, then well": (
        sends(200, chunked(CONTENT[:9], end=False), Transfer_Encoding="chunked"),
        whole,
    ),
    "cut within a chunk, then well": (sends(200, b"ffff\r\nabc", Transfer_Encoding="chunked"), whole),
    "a length that is too long, then well": (sends(200, CONTENT, Content_Length=str(len(CONTENT) + 5)), rest),
    "no body, then well": (sends(200, b"", Content_Length=LENGTH), whole),
    "another range than was asked for": (
        cut_after(1_000_000),
        sends(206, CONTENT[5:], Content_Range="bytes 5-/*"),
        whole,
    ),
    "a part without its range": (cut_after(1_000_000), sends(206, CONTENT[9:], Content_Length=LENGTH), whole),
    "wrong bytes for a range, then well": (
        cut_after(1_000_000),
        lambda handler, start: rest(handler, start, bytes(len(CONTENT))),
        whole,
    ),
    "nothing beyond what is there, though there is": (cut_after(1_000_000), sends(416, b""), whole),
    "said to be compressed, and is not": (sends(200, CONTENT, Content_Length=LENGTH, Content_Encoding="gzip"),),
    "too many requests, then well": (status(429), whole),
    "no HTTP, then well": (lambda handler, _start: handler.wfile.write(b"\x00" * 100), whole),
    "headers without end, then well": (
        lambda handler, _start: handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200),
        whole,
    ),
    "two lengths, then well": (sends(200, CONTENT, Content_Length=f"{LENGTH}, 7"), whole),
    "a redirect, to the same": (
        lambda handler, _start: (
            whole(handler, 0) if "?" in handler.path else sends(302, b"", Location="/file.zip?again")(handler, 0)
        ),
    ),
}
WRONG = {
    "a length that is too short": (sends(200, CONTENT, Content_Length="1000"), r"expected sha256:.* \(1,000 bytes\)"),
    "compressed although asked not to": (
        sends(200, gzip.compress(CONTENT), Content_Encoding="gzip"),
        "expected sha256:",
    ),
    "another file": (sends(200, CONTENT[::-1], Content_Length=LENGTH), "expected sha256:"),
    "an empty file": (sends(200, b"", Content_Length="0"), r"expected sha256:.* \(0 bytes\)"),
    "a page of an error, with 200": (sends(200, b"<html>Sorry</html>"), "expected sha256:"),
    "redirects in a circle": (sends(302, b"", Location="/file.zip"), r"redirects in a circle \(tried 1 times\)"),
    "a redirect into this machine": (
        sends(302, b"", Location="file:///etc/passwd"),
        "No connection adapters were found",
    ),
    "a redirect to nowhere": (sends(302, b"", Location="http://"), "tried 1 times"),
    "a redirect to half a bracket": (sends(302, b"", Location="https://[mirror/x.zip"), "tried 1 times"),
    "a redirect to no name": (sends(302, b"", Location="http://data..caltech.edu/x"), "tried 1 times"),
    "a redirect elsewhere": (sends(301, b"", Location="ftp://127.0.0.1/x"), "No connection adapters were found"),
    "cut at once, always": (cut_after(0), r"the connection broke off \(tried 3 times\)"),
    "a byte, and cut, always": (cut_after(1), r"the connection broke off \(tried 3 times\); 3 bytes are kept"),
    "a part, never what was asked for": (sends(206, CONTENT, Content_Range="bytes 7-9/10"), "another range"),
    "not there": (status(404), "answered 404 Not Found"),
    "nothing there, of nothing": (status(416), r"answered 416 .* \(tried 1 times\)"),
    "always ill": (status(500), r"answered 500 .* \(tried 3 times\)"),
    "no HTTP": (lambda handler, _start: handler.wfile.write(b"\x00" * 100), r"no connection \(tried 3 times\)"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_it_finishes_right(case: str, cache: Path) -> None:
    with Server(*RIGHT[case]) as server:
        assert get(server.url).read_bytes() == CONTENT
    assert [path.name for path in finished(cache)] == [CHECKSUM.replace(":", "-")]


@pytest.mark.parametrize("case", WRONG)
def test_it_fails_in_one_line_and_keeps_nothing_wrong(case: str, cache: Path) -> None:
    answer, said = WRONG[case]
    with Server(answer) as server:
        with pytest.raises(LookalikeError, match=said) as caught:
            get(server.url)
        assert "\n" not in str(caught.value)
        assert server.url in str(caught.value)
        assert finished(cache) == []
    with Server(whole) as server:  # what it left behind does no harm
        assert get(server.url).read_bytes() == CONTENT


@pytest.mark.parametrize("headers", [{}, {"Transfer_Encoding": "chunked"}, {"Content_Length": str(1 << 60)}], ids=str)
def test_a_body_without_end_does_not_fill_the_disk(
    headers: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.datasets.download.LARGEST", 5_000_000)
    piece = bytes(1_000_000)
    body = chunked(piece, end=False) if "Transfer_Encoding" in headers else piece
    with Server(sends(200, body, endless=True, **headers)) as server:
        with pytest.raises(LookalikeError, match=r"sent more than 5,000,000 bytes.*nothing was kept"):
            get(server.url)
        assert len(server.ranges) == 1
    assert [path for path in cache.glob("*") if path.suffix != ".lock"] == []


def test_a_slow_drip_ends(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.datasets.download.WINDOW", 0.3)
    with Server(sends(200, b"x", pause=0.02, endless=True, Content_Length=LENGTH)) as server:
        with pytest.raises(LookalikeError, match=r"fewer than 1,000 bytes a second .* \(tried 3 times\)"):
            get(server.url)
    assert finished(cache) == []


def test_a_quick_beginning_does_not_pay_for_a_slow_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.datasets.download.WINDOW", 0.1)
    drip = [b"x"] * 30_000  # ten minutes; then it ends, which would be another message
    with Server(sends(200, CONTENT[:1_000_000], *drip, pause=0.02, Content_Length=LENGTH)) as server:
        with pytest.raises(LookalikeError, match=r"fewer than 1,000 bytes a second .* \(tried 1 times\); 1,000,0"):
            fetch(server.url, CHECKSUM, attempts=1, backoff=0)


def test_a_silent_server_ends(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.datasets.download.TIMEOUT", (60, 0.2))
    for silent in (lambda *_: time.sleep(60), sends(200, b"x", b"y", pause=60, Content_Length=LENGTH)):
        with Server(silent) as server, pytest.raises(LookalikeError, match=r"no answer in time \(tried 3 times\)"):
            get(server.url)
    assert finished(cache) == []
