"""Hostile uploads are refused, and the next one works."""

import io
import os
import socket
import struct
import time
import zipfile
import zlib
from collections.abc import Callable

import pytest

from lookalike.api import problems
from proof.patience import patience
from tests.helpers.pictures import picture
from tests.helpers.served_collection import FIRST, Server, Where, is_problem, saved

pytestmark = pytest.mark.slow  # servers of their own


def animated(kind: str) -> bytes:
    return saved(kind, save_all=True, append_images=[picture(2), picture(3)])


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def with_archive(content: bytes) -> bytes:
    out = io.BytesIO(content)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("run.class", "x")
    return out.getvalue()


HOSTILE: dict[str, tuple[Callable[[], bytes], problems.Kind]] = {
    "truncated JPEG": (lambda: saved("JPEG")[:-60], problems.BROKEN_IMAGE),
    "head of a JPEG": (lambda: saved("JPEG")[:4], problems.NOT_AN_IMAGE),
    "truncated PNG": (lambda: saved("PNG")[:-60], problems.BROKEN_IMAGE),
    "huge claim": (lambda: png_that_claims(60_000, 60_000), problems.TOO_MANY_PIXELS),
    "lying claim": (lambda: png_that_claims(1000, 1000), problems.BROKEN_IMAGE),
    "many pixels": (lambda: saved("PNG", (2500, 2000)), problems.TOO_MANY_PIXELS),
    "many bytes": (lambda: os.urandom(1_000_001), problems.TOO_MANY_BYTES),
    "JPEG and ZIP": (lambda: with_archive(saved("JPEG")), problems.TWO_FORMATS),
    "GIF and script": (lambda: saved("GIF") + b"=1;<script>alert(1)</script>", problems.TWO_FORMATS),
    "PNG with a page": (lambda: saved("PNG")[:-12] + b"<!DOCTYPE html><html>", problems.TWO_FORMATS),
    "JPEG and PDF": (lambda: saved("JPEG", comment=b"%PDF-1.7 obj"), problems.TWO_FORMATS),
    "JPEG of many scans": (lambda: saved("JPEG") + b"\xff\xda" * 100, problems.BROKEN_IMAGE),
    "animated GIF": (lambda: animated("GIF"), problems.SEVERAL_FRAMES),
    "animated WebP": (lambda: animated("WEBP"), problems.SEVERAL_FRAMES),
    "animated PNG": (lambda: animated("PNG"), problems.SEVERAL_FRAMES),
    "pages of TIFF": (lambda: animated("TIFF"), problems.SEVERAL_FRAMES),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>',
            problems.NOT_AN_IMAGE),
    "EPS": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", problems.NOT_AN_IMAGE),
    "text": (lambda: b"not a picture at all", problems.NOT_AN_IMAGE),
    "zeros": (lambda: bytes(1000), problems.NOT_AN_IMAGE),
    "address": (lambda: b"http://169.254.169.254/latest/meta-data", problems.NOT_AN_IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_refused_and_the_next_one_works(server: Server, where: Where, name: str) -> None:
    make, kind = HOSTILE[name]
    content = make()
    assert is_problem(server.search(content), kind)
    assert is_problem(server.client.post("/search", files={"file": ("a.jpg", content, "image/jpeg")}), kind)
    assert is_problem(server.client.post("/items", files={"file": ("../../x", content)}), kind)
    assert server.search(where.content(), k=1).json()["hits"][0]["path"] == FIRST


def test_a_photo_with_previews_is_one_picture(server: Server) -> None:
    """As many telephones write it (MPO)."""
    assert server.search(saved("MPO", save_all=True, append_images=[picture(2)])).status_code == 200


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize(
    ("first", "chunk", "status", "problem", "limit"),
    [
        (b"", b"\x89PNG" * 25_000, b"413", b"too-many-bytes", 1_000_000),
        (b"\xff\xd8", b"\xff" * 100_000, b"422", b"fill bytes in a row", 300_000),
    ],
    ids=["too large", "fill bytes"],
)
def test_a_body_is_refused_before_it_is_there(server: Server, form, first, chunk, status, problem, limit) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience(60)) as door:
        kind = "multipart/form-data; boundary=b" if form else "image/png"
        start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' if form else b""
        door.sendall(f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
                     "Transfer-Encoding: chunked\r\n\r\n".encode())  # fmt: skip
        sent = 0
        if start + first:
            begin = start + first + chunk[:1]
            door.sendall(b"%x\r\n%s\r\n" % (len(begin), begin))
        answer = b""
        while sent < 50_000_000 and not answer:
            door.settimeout(patience(60))
            door.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            sent += len(chunk)
            door.settimeout(0.02 if sent <= limit else patience(60))  # past the limit it has to answer
            try:
                answer = door.recv(65536)
            except TimeoutError:
                pass
        door.settimeout(patience(60))
        while more := door.recv(65536):
            answer += more
        assert answer.startswith(b"HTTP/1.1 %s " % status) and problem in answer
        assert b"connection: close" in answer.lower()
        assert sent < 3_000_000
    assert server.client.get("/ready").status_code == 200


def test_a_body_that_is_declared_too_large_is_not_received(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience(60)) as door:
        door.sendall(f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Length: 50000000\r\n\r\n".encode())
        assert door.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_who_breaks_off_leaves_nothing_behind(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience(60)) as door:
        door.sendall(f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Length: 500\r\n\r\nhalf".encode())
    deadline = time.monotonic() + patience(60)
    while server.figure("lookalike_queries_under_way"):
        assert time.monotonic() < deadline
    assert server.process.poll() is None
