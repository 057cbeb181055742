"""Features and index go from one clone into another through real servers: S3's protocol, and plain HTTP.

The lines break, and the processes are killed, on the way.
"""

import base64
import hashlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from proof.patience import patience
from tests.helpers.bad_line import Line
from tests.helpers.import_graph import ROOT
from tests.helpers.project import Project, copy_project

pytestmark = pytest.mark.slow  # DVC and servers

PAGE = (ROOT / "docs/remotes.md").read_text()
OUTPUTS = ("data/features", "data/index")
BEGUN = 3_000_000  # bytes: features.npy, the largest file, has begun and is far from whole


class Store(BaseHTTPRequestHandler):
    """Keeps what is put, once it is whole; as WebDAV of nginx or Apache would."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def _path(self) -> Path:
        return self.folder / hashlib.sha256(self.path.encode()).hexdigest()

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else b""
        while self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline() or b"-1", 16)
            if size < 0:
                break
            content += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                self._path().write_bytes(content)
                break
        else:
            if len(content) == int(self.headers["Content-Length"]):
                self._path().write_bytes(content)
        self._say(201, b"")

    def parse_request(self) -> bool:
        known = f"Basic {base64.b64encode(b'lookalike:secret').decode()}"
        if super().parse_request() and self.headers["Authorization"] == known:
            return True
        self.send_error(401)
        return False

    def do_GET(self) -> None:
        there = self._path().exists()
        self._say(200 if there else 404, self._path().read_bytes() if there else b"")

    do_HEAD = do_GET

    def _say(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # whoever sent was killed, or the line broke
            self.close_connection = True


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[int]:
    """The port of a server of S3's protocol with a bucket `team`."""
    pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed: pip install -r requirements/s3.txt")
    pytest.importorskip("moto", reason="moto is not installed: pip install -r requirements/dev.txt")
    port = free_port()
    with (tmp_path / "moto.log").open("w") as log:
        command = [sys.executable, "-m", "moto.server", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + patience(120)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            assert process.poll() is None, (tmp_path / "moto.log").read_text()
            try:
                bucket = urllib.request.Request(f"http://127.0.0.1:{port}/team", method="PUT")
                urllib.request.urlopen(bucket, timeout=patience(60)).close()
                break
            except OSError:
                continue
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def http(tmp_path: Path) -> Iterator[int]:
    """The port of a server that files can be put on."""
    (tmp_path / "store").mkdir()
    handler = type("Handler", (Store,), {"folder": tmp_path / "store"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def settings(kind: str, port: int) -> list[str]:
    """What docs/remotes.md tells to set, with this machine's address."""
    section = PAGE.split(f"\n## {kind}\n")[1].split("\n## ")[0]
    found = re.findall(r"^dvc remote modify (.*)$", section, re.MULTILINE)
    return [re.sub(r"https://\w+\.example\.org", f"http://127.0.0.1:{port}", line) for line in found]


def digests(project: Project) -> dict[str, str]:
    files = [path for folder in OUTPUTS for path in sorted((project.folder / folder).rglob("*")) if path.is_file()]
    return {path.relative_to(project.folder).as_posix(): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def killed(project: Project, line: Line, *command: str) -> None:
    """Start a transfer, and SIGKILL it when the line has stalled in the middle of it."""
    line.stall(BEGUN)
    process = subprocess.Popen(
        command, cwd=project.folder, env=project.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert line.stalled.wait(patience(300)), "nothing was transferred"
    assert process.poll() is None
    process.kill()
    process.wait()
    line.mend()


def through_a_bad_line(project: Project, line: Line, *command: str) -> None:
    """Transfer although connections break, by asking again where the program gives up."""
    line.cut(BEGUN // 3, times=3)
    for _ in range(4):
        if not project.run(*command, check=False).returncode:
            break
    else:
        raise AssertionError(project.run(*command).stderr)
    assert line.cuts == 3, "no connection broke"
    line.mend()


@pytest.mark.parametrize("kind", ["S3", "HTTP"])
def test_a_clone_pulls_what_another_pushed_over_a_bad_line(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    line = Line(request.getfixturevalue(kind.lower()))
    ours = copy_project(tmp_path / "ours", outputs=True)
    ours.run("dvc", "pull", *OUTPUTS)
    expected = digests(ours)
    assert {"data/features/features.npy", "data/index/index.faiss"} <= set(expected)
    for setting in settings(kind, line.port):
        ours.run("dvc", "remote", "modify", *setting.split())
    assert "secret" not in (ours.folder / ".dvc/config").read_text()
    ours.commit("our remote")

    killed(ours, line, "dvc", "push", *OUTPUTS)
    through_a_bad_line(ours, line, "dvc", "push", *OUTPUTS)
    assert "Everything is up to date" in ours.run("dvc", "push", *OUTPUTS).stdout

    ours.run("git", "clone", "--quiet", ".", str(tmp_path / "theirs"))
    theirs = Project(tmp_path / "theirs")
    assert not (theirs.folder / ".dvc/config.local").exists()
    shutil.copy(ours.folder / ".dvc/config.local", theirs.folder / ".dvc")
    assert "config.local" not in theirs.run("git", "status", "--porcelain").stdout
    killed(theirs, line, "dvc", "pull", *OUTPUTS)
    assert digests(theirs).items() <= expected.items()  # nothing half is in place
    through_a_bad_line(theirs, line, "dvc", "pull", *OUTPUTS)
    assert digests(theirs) == expected
    line.close()


def test_what_the_store_garbled_is_refused_where_it_is_verified(http: int, tmp_path: Path) -> None:
    ours = copy_project(tmp_path / "ours", outputs=True)
    ours.run("dvc", "pull", "data/index")
    expected = digests(ours)
    line = "dvc remote modify storage verify true"
    assert line in PAGE
    for setting in [*settings("HTTP", http), line.removeprefix("dvc remote modify ")]:
        ours.run("dvc", "remote", "modify", *setting.split())
    ours.run("dvc", "push", "data/index")
    stored = [path for path in (tmp_path / "store").iterdir() if path.stat().st_size > 10_000]
    assert stored
    contents = {path: path.read_bytes() for path in stored}
    for path, content in contents.items():
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    shutil.rmtree(ours.folder / "data/index")
    shutil.rmtree(ours.folder / ".dvc/cache")
    assert ours.run("dvc", "pull", "data/index", check=False).returncode
    assert digests(ours).items() <= expected.items()
    for path, content in contents.items():
        path.write_bytes(content)
    ours.run("dvc", "pull", "data/index")
    assert digests(ours) == expected
