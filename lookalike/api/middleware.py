"""Middleware: access control, headers of every answer, the access log and metrics."""

import asyncio
import hashlib
import hmac
import json
import sys
import time
from datetime import UTC, datetime
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.api import problems
from lookalike.api.metrics import Metrics
from lookalike.api.problems import Problem
from lookalike.api.settings import Settings

SECURE = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"referrer-policy", b"no-referrer"),
]
LINGER_SECONDS = 1.0  # seconds that a body is still received after its answer, so that the client can read it
LINGER_BYTES = 1 << 20
CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Gate:
    """Access control by token, by the host that a request names, and by the page that it comes from."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._token = hashlib.sha256(settings.token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
        problem = self._refused(scope) if scope["type"] == "http" else None
        if problem:
            await problem.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refused(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._settings.hosts and (urlsplit(f"//{host}").hostname or "") not in self._settings.hosts:
            # A page may give this machine's address a name of its own (DNS rebinding), and read what it answers.
            return Problem(problems.FORBIDDEN, "the request is for another host; name it with --allow-host")
        if scope["path"] == "/health" or not self._settings.token:
            return self._foreign(scope, headers, host)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._token):
            return Problem(
                problems.UNAUTHORIZED,
                "send the header Authorization: Bearer and the token",
                {"WWW-Authenticate": "Bearer"},
            )
        return None

    def _foreign(self, scope: Scope, headers: Headers, host: str) -> Problem | None:
        """Refuse changes from other pages: any page in a browser on this machine could post a form here."""
        origin = headers.get("origin")
        if scope["method"] not in CHANGING or origin is None or origin in self._settings.origins:
            return None
        if urlsplit(origin).netloc == host and host:
            return None
        return Problem(problems.FORBIDDEN, "a page from elsewhere may not ask this; allow its origin with --cors")


class Edge:
    """Outermost layer: adds headers, reads on after an early answer, logs and counts."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log: bool) -> None:
        self._app, self._metrics, self._log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            await _Exchange(scope, receive, send).run(self._app, self._metrics, self._log)
        else:
            await self._app(scope, receive, send)


class _Exchange:
    """A request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        headers = Headers(scope=scope)
        self._unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self._status, self._bytes = 500, 0

    async def run(self, app: ASGIApp, metrics: Metrics, log: bool) -> None:
        start = time.perf_counter()
        try:
            await app(self._scope, self.receive, self.send)
        finally:
            seconds = time.perf_counter() - start
            method, route = self._scope["method"], getattr(self._scope.get("route"), "path", "other")
            metrics.answered(method, route, self._status, seconds)
            if log:
                self._write(method, seconds)

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body"):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message.get("headers", []), *SECURE]
            if self._unread:
                message["headers"].append((b"connection", b"close"))
        else:
            self._bytes += len(message.get("body", b""))
            if self._unread and not message.get("more_body"):
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        """Read on for a while: a connection that is closed with bytes unread is reset, and the answer may be lost."""
        left = LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while self._unread and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass

    def _write(self, method: str, seconds: float) -> None:
        client = self._scope.get("client") or ("", 0)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": client[0],
            "method": method,
            "path": self._scope["path"],
            "status": self._status,
            "bytes": self._bytes,
            "ms": round(seconds * 1000, 1),
        }
        sys.stderr.write(json.dumps(line) + "\n")
