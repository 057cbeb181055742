"""Tokens, origins and headers."""

import json
import os
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest

from lookalike.api import problems
from tests.helpers.project import ROOT
from tests.helpers.served_collection import ITEM, Server, Where, is_problem, serving

pytestmark = pytest.mark.slow  # servers of their own


def test_a_token_is_needed_where_one_is_set(where: Where) -> None:
    word = "0123456789abcdef"
    with serving(where, LOOKALIKE_TOKEN=word) as server:
        for header in ("", "Bearer", "Bearer 0123456789abcdeX", f"Basic {word}", "Bearer é"):
            for target in ("/ready", "/metrics", "/openapi.json", f"{ITEM}/similar", "/nothing"):
                answer = httpx.get(f"{server.url}{target}", headers={"Authorization": header.encode()})
                assert is_problem(answer, problems.UNAUTHORIZED)
        assert is_problem(httpx.post(f"{server.url}/search", content=where.content()), problems.UNAUTHORIZED)
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.client.get("/openapi.json").status_code == 200
        assert word not in server.said()


def test_a_weak_token_and_a_taken_port_are_refused_in_a_line(where: Where, server: Server) -> None:
    (where.folder / "token").write_text("short\n")
    port = server.url.rpartition(":")[2]
    for options, reason in ([f"--token-file={where.folder / 'token'}"], "16"), ([f"--port={port}"], port):
        done = subprocess.run(
            [sys.executable, "-m", "lookalike.cli", "serve", *where.options, *options],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 1 and reason in done.stderr and done.stderr.count("\n") == 1


def test_without_its_packages_serve_says_what_to_install(where: Where) -> None:
    program = "import sys; sys.modules['fastapi'] = None; from lookalike.cli import app; app(['serve'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1
    expected = "lookalike: error: fastapi is not installed: pip install -r requirements/serve.txt\n"
    assert done.stderr == expected


def test_pages_from_elsewhere(server: Server, where: Where) -> None:
    def asked(origin: str) -> httpx.Response:
        return server.client.post("/search?k=1", content=where.content(), headers={"Origin": origin})

    assert is_problem(asked("https://elsewhere.example"), problems.FORBIDDEN)
    assert is_problem(asked("null"), problems.FORBIDDEN)
    assert asked("https://page.example").headers["access-control-allow-origin"] == "https://page.example"
    assert asked(server.url).status_code == 200
    rebound = server.client.get("/ready", headers={"Host": "attacker.example"})
    assert is_problem(rebound, problems.FORBIDDEN)
    for host in ("localhost:1", "[::1]:1"):
        assert server.client.get("/ready", headers={"Host": host}).status_code == 200
    with serving(where) as plain:
        ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
        for answer in (plain.client.options("/search", headers=ask), plain.client.get("/ready", headers=ask)):
            assert "access-control-allow-origin" not in answer.headers


def test_every_answer_has_its_headers_and_a_line_in_the_log(server: Server) -> None:
    asked = {"/health": 200, "/nothing": 404, f"{ITEM}/image": 200, f"{ITEM}/similar": 200}
    before = len(logged(server))
    for target in asked:
        headers = server.client.get(target).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "server" not in headers
        assert "no-" in headers["cache-control"]
    while not asked.items() <= {line["path"]: line["status"] for line in logged(server)[before:]}.items():
        time.sleep(0.01)  # a line is written when its answer has left, and not in their order
    assert all({"time", "client", "method", "path", "status", "bytes", "ms"} == set(line) for line in logged(server))


def logged(server: Server) -> list[dict[str, Any]]:
    """The whole lines of the log."""
    return [json.loads(line) for line in server.said().split("\n")[:-1] if line.startswith("{")]
