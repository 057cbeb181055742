"""The server process: its socket, its start and its end."""

import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import uvicorn

from lookalike.api.app import create
from lookalike.api.service import Service
from lookalike.api.settings import Settings
from lookalike.base.errors import LookalikeError

TOKEN_VARIABLE = "LOOKALIKE_TOKEN"  # noqa: S105
GRACE = 30  # seconds for what is under way, when the server is to end
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def run(settings: Settings, host: str, port: int, tell: Callable[[str], None], *, log: bool = True) -> None:
    """Serve until a signal ends it, then finish what is under way. Raises LookalikeError if it cannot begin."""
    loopback = is_loopback(host)
    if not loopback and not settings.token:
        tell(f"warning: anybody who reaches {host} can search and change the collection; set {TOKEN_VARIABLE}")
    service = Service(settings)
    service.open()
    _, app = create(service, log=log)
    for number in (signal.SIGTERM, signal.SIGINT):  # what uvicorn passes on after it has ended well
        signal.signal(number, lambda *_: None)
    with listening(host, port) as door:
        server = Server(app, door, tell, service)
        server.run([door])
    if server.failed:
        raise LookalikeError(str(server.failed))


def listening(host: str, port: int) -> socket.socket:
    """Bind a socket. Raises LookalikeError where that is impossible."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise LookalikeError(f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port") from None


class Server(uvicorn.Server):
    """Uvicorn's server, which says where it listens, then that it serves, and ends if the network cannot be loaded."""

    def __init__(self, app: Any, door: socket.socket, tell: Callable[[str], None], service: Service) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,
                log_level="warning",
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_graceful_shutdown=GRACE,
            )
        )
        self._door, self._tell, self._service = door, tell, service
        self.failed: BaseException | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then load the network; /health is answered meanwhile."""
        await super().startup(sockets)
        self._tell(f"listening on {self._address()}; the network is being loaded")
        self._service.load().add_done_callback(self._loaded)

    def _loaded(self, done: "Future[Any]") -> None:
        self.failed = done.exception()
        if self.failed:
            self.should_exit = True
        else:
            self._tell(f"serving on {self._address()}")

    def _address(self) -> str:
        host, port = self._door.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token(file: Path | None) -> str:
    """Read the token from a file or the environment; "" for none."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        content = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise LookalikeError(
            f"{file} is not UTF-8 ({error.reason} at byte {error.start}); write a token into it: openssl rand -hex 16"
        ) from None
    if not content:
        raise LookalikeError(f"{file} holds no token; write one into it: openssl rand -hex 16")
    return content


def hosts(host: str, named: tuple[str, ...], token: str) -> frozenset[str]:
    """List the host names that are accepted; empty for any. Loopback without a token accepts this machine's only."""
    if named or (is_loopback(host) and not token):
        return frozenset({*(each.lower() for each in named), *LOOPBACK, host.lower()})
    return frozenset()
