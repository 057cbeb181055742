"""DVC and the stages, started at once: copies of a process that has imported what they import, the most of their time.

A test starts DVC, and DVC a stage, as ever: by the `dvc` and the `python` that are first in PATH. These are this file:
it hands its arguments, folder, environment and open files to the process of `Warm`, which forks for it, and ends as the
copy does. The nine tests of one changed setting take 62 s, and 94 s without it. The project's own modules are not among
those imported before: a stage finds its checkout's.
"""

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOCKET = "LOOKALIKE_TEST_WARM"  # variable that names the socket
SCRIPTS = ("stages/",)
DVC = [
    "dvc.cli.parser", "dvc.fs.dvc", "dvc.fs.git", "dvc.repo.checkout", "dvc.repo.experiments.run", "dvc.repo.fetch",
    "dvc.repo.metrics.diff", "dvc.repo.plots", "dvc.repo.push", "dvc.repo.reproduce", "dvc.repo.status",
    "dvc.stage.cache", "dvc.stage.run", "dvc.stage.serialize", "dvc_data.index.save", "dvc_http", "dvc_render.html",
]  # fmt: skip
READ = 1 << 16  # bytes


class Warm:
    """A warm process and the folder with its `python`; both are gone when this process is."""

    def __init__(self) -> None:
        """Begin to import."""
        self._folder = tempfile.TemporaryDirectory(prefix="warm")
        place = Path(self._folder.name)
        programs = place / "bin"
        programs.mkdir()
        for name in ("dvc", "python"):
            handed = shlex.join([sys.executable, "-SE", __file__, name])
            (programs / name).write_text(f'#!/bin/sh\nexec {handed} "$@"\n', "utf-8")
            (programs / name).chmod(0o755)
        self.variables = {
            "PATH": f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            SOCKET: str(place / "socket"),
        }
        passive = {"OMP_WAIT_POLICY": "PASSIVE"}  # as in conftest.py; the library reads it when it is loaded
        command = [sys.executable, __file__, "--serve", self.variables[SOCKET]]
        self._process = subprocess.Popen(  # its standard input ends when this process does
            command, stdin=subprocess.PIPE, env=os.environ | passive
        )
        while not Path(self.variables[SOCKET]).exists():
            if self._process.poll() is not None:
                raise AssertionError("the warm process could not start")
            time.sleep(0.02)


def client() -> None:
    """Be `dvc` or `python`, of which only stages are handed over."""
    name, *arguments = sys.argv[1:]
    if name == "python" and not "".join(arguments[:1]).startswith(SCRIPTS):
        os.execv(sys.executable, [sys.executable, *arguments])
    arguments = [name, *arguments] if name == "dvc" else arguments
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET])
        message = json.dumps([arguments, str(Path.cwd()), dict(os.environ)]).encode()
        socket.send_fds(connection, [len(message).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(message)
        status = int.from_bytes(connection.recv(2), "big")
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.waitstatus_to_exitcode(status))


def serve(name: str) -> list[str]:
    """Import, then fork for each client, until standard input ends. Returns in a copy: program and arguments."""
    sys.path.insert(0, str(ROOT))
    from proof.effects.stage_runner import WARM

    *imported, frozen = WARM  # the last one leaves what there is out of the search for garbage
    for module in [*imported, *DVC, frozen]:
        __import__(module)
    for module in [each for each in sys.modules if each.split(".")[0] in ("lookalike", "proof")]:
        del sys.modules[module]
    sys.path.remove(str(ROOT))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who wait for a stage are waited for by nobody
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{name}.new")
        listening.listen(64)
        Path(f"{name}.new").rename(name)  # from here on: ready
        while True:
            ready, _, _ = select.select([listening, 0], [], [])
            if 0 in ready:
                sys.exit()
            connection, _ = listening.accept()
            if not os.fork():
                listening.close()
                return keep(connection)
            connection.close()


def keep(connection: socket.socket) -> list[str]:
    """Fork, tell the client how the copy ends, and end it if the client is gone. Returns in the copy."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    message = b""
    while len(message) < int.from_bytes(size, "big"):
        message += connection.recv(READ)
    arguments, folder, environment = json.loads(message)
    copy = os.fork()
    if copy:
        ended = os.pidfd_open(copy)
        if ended not in select.select([ended, connection], [], [])[0]:
            os.kill(copy, signal.SIGKILL)
        status = os.waitpid(copy, 0)[1]
        with connection:
            connection.sendall(status.to_bytes(2, "big"))
        os._exit(0)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return list(arguments)


def run(arguments: list[str]) -> int:
    """Be the program; returns its exit status."""
    import runpy  # not above: a client should be quick
    import traceback

    sys.argv = arguments
    try:
        if arguments[0] == "dvc":
            from dvc.cli import main

            return main()
        runpy.run_path(str(Path(arguments[0]).absolute()), run_name="__main__")
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(status: int) -> None:
    """End as Python does, except that what was imported is not taken apart, which would take a second."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    if sys.argv[1:2] != ["--serve"]:
        client()
    end(run(serve(sys.argv[2])))
