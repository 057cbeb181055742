"""Load on `lookalike serve`, on loopback: what it answers a second, how fast, and whether its memory stays.

    python benchmarks/serving.py                                # a minute each; data/index, data/model, data/raw
    python benchmarks/serving.py --seconds 5 --memory 0         # to see that it works

For /search (a picture as the body, another one each time) and /items/{id}/similar, at 1, 8 and 64 connections, each of
which asks as soon as it is answered: answers a second, the 50th and 99th percentile, milliseconds of a core that the
server used for an answer (its decoders' not counted), and errors, which are all but 200.
Then the server's resident memory after 1,000 and after 10,000 searches by 8 connections, from a fresh start.

`wrk` makes the load where it is installed, else a client of our own (asyncio, bare sockets); the report says which.
Both run on the server's own machine and take a share of its cores: a client elsewhere would see more.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from benchmarks.common import markdown, serving_parser
from lookalike.api.schema import id_of
from lookalike.artifacts.arrays import map_names
from lookalike.base import script as stage
from lookalike.base.errors import LookalikeError
from lookalike.base.machine import cores, cpu_name

CONNECTIONS = (1, 8, 64)
PICTURES = 64
ROOT = Path(__file__).resolve().parents[1]
# wrk sends the requests in turn; their heads and bodies lie in files, as Lua has no bytes in its source.
LUA = """
local requests, count = {}, 0
for number = 0, %d do
  local file = io.open("%s/" .. number, "rb")
  requests[number] = file:read("*all")
  file:close()
end
request = function()
  count = count + 1
  return requests[count %% (%d + 1)]
end
local quick = {}
done = function(summary, latency, _)
  local e = summary.errors
  io.write(string.format('{"answers": %%d, "errors": %%d, "seconds": %%f, "p50": %%f, "p99": %%f}\\n', summary.requests,
    e.connect + e.read + e.write + e.status + e.timeout, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class Load:
    """What came of one load; times in milliseconds."""

    answers: int
    errors: int
    seconds: float
    p50: float
    p99: float


def main() -> None:
    """Read the arguments, load, print two tables and what they say of the goals."""
    parser = serving_parser(__doc__, "of each load")
    parser.add_argument("--memory", type=int, default=10_000, help="searches until memory is read again; 0: not at all")
    parser.add_argument("--client", choices=["wrk", "ours"], help="by default wrk, where it is installed")
    parser.add_argument("--csv", type=Path, help="write the first table here too")
    args = parser.parse_args()
    client = args.client or ("wrk" if shutil.which("wrk") else "ours")
    paths = [str(path) for path in map_names(args.index)[0][:: max(1, len(map_names(args.index)[0]) // PICTURES)]]
    searches = [request("POST", "/search?k=10", (args.images / path).read_bytes()) for path in paths]
    similar = [request("GET", f"/items/{id_of(path)}/similar?k=10") for path in paths]
    print(f"{' '.join(['python', *sys.argv])}\n{cpu_name()}, {cores()} cores, client: {client}\n")

    rows: list[dict[str, Any]] = []
    with served(args) as (port, process):
        for name, requests in (("/search", searches), ("/items/{id}/similar", similar)):
            asyncio.run(ours(port, requests, 8, seconds=min(2, args.seconds)))  # warms up
            for connections in CONNECTIONS:
                before, used = batches(port), core_seconds(process)
                load = measured(client, port, requests, connections, args.seconds)
                core = 1000 * (core_seconds(process) - used) / load.answers
                calls, pictures = (now - then for now, then in zip(batches(port), before, strict=True))
                rows.append(
                    {
                        "address": name,
                        "connections": connections,
                        "a second": load.answers / load.seconds,
                        "p50 ms": load.p50,
                        "p99 ms": load.p99,
                        "core ms": core,
                        "errors": load.errors,
                        "pictures a batch": pictures / calls if calls else 0,
                    }
                )
    table = pd.DataFrame(rows)
    print(markdown(table.round(2)))
    speed = table.set_index(["address", "connections"])["a second"]
    print(f"\n/search, 8 connections against 1: {speed['/search', 8] / speed['/search', 1]:.2f} times (goal: 1.5)")
    print(f"similar against /search, 8: {speed['/items/{id}/similar', 8] / speed['/search', 8]:.1f} times (goal: 8)")
    if args.csv:
        table.to_csv(args.csv, index=False)
    if args.memory:
        with served(args) as (port, process):
            sizes = []
            for count in (args.memory // 10, args.memory - args.memory // 10):
                asyncio.run(ours(port, searches, 8, most=count))
                sizes.append(resident(process))
        print(
            f"memory after {args.memory // 10} searches {sizes[0] / 1e6:.0f} MB, after {args.memory} "
            f"{sizes[1] / 1e6:.0f} MB: {sizes[1] / sizes[0] - 1:+.1%} (goal: within 10 %)"
        )


def request(method: str, target: str, body: bytes = b"") -> bytes:
    """A request as it goes over the wire."""
    head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    return (f"{head}Content-Length: {len(body)}\r\n\r\n" if body else f"{head}\r\n").encode() + body


@contextmanager
def served(args: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """A server of its own, ready: its port, and its process."""
    where = [f"--{name}={getattr(args, name)}" for name in ("index", "model", "changes", "images")]
    with tempfile.TemporaryFile("w+") as log:  # the access log is part of the work
        process = subprocess.Popen(
            [sys.executable, "-m", "lookalike.cli", "serve", "--port", "0", *where],
            stderr=log,
            cwd=Path.cwd(),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            yield port_of(process, log), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def port_of(process: "subprocess.Popen[bytes]", log: Any) -> int:
    """Wait until a server is ready."""
    while process.poll() is None:
        log.seek(0)
        found = re.search(r"serving on http://127\.0\.0\.1:(\d+)", log.read())
        if found:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/ready", timeout=5)
                return int(found[1])
            except OSError:
                pass
        time.sleep(0.1)
    log.seek(0)
    raise LookalikeError(f"the server ended: {log.read()[-500:]}")


def batches(port: int) -> tuple[float, float]:
    """The network's calls so far, and the pictures in them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = dict(re.findall(r"^lookalike_batch_size_(count|sum) (\S+)", text, re.MULTILINE))
    return float(found["count"]), float(found["sum"])


def resident(process: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def core_seconds(process: int) -> float:
    """Seconds of a core that a process has used."""
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


def measured(client: str, port: int, requests: list[bytes], connections: int, seconds: float) -> Load:
    """Load by one of the clients."""
    if client == "ours":
        return asyncio.run(ours(port, requests, connections, seconds=seconds))
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(requests):
            (Path(folder) / str(number)).write_bytes(content)
        script = Path(folder) / "load.lua"
        script.write_text(LUA % (len(requests) - 1, folder, len(requests) - 1))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script), f"http://127.0.0.1:{port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout.strip().splitlines()[-1]))


async def ours(
    port: int, requests: list[bytes], connections: int, *, seconds: float = float("inf"), most: int = sys.maxsize
) -> Load:
    """Load by so many connections, for a time or a number of answers."""
    waiting, times, errors = itertools.cycle(requests), [], 0
    start = time.perf_counter()
    left = iter(range(most))

    async def connection() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() - start < seconds and next(left, None) is not None:
            begun = time.perf_counter()
            writer.write(next(waiting))
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            times.append(time.perf_counter() - begun)
            errors += not head.startswith(b"HTTP/1.1 200 ")
        writer.close()

    await asyncio.gather(*(connection() for _ in range(connections)))
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    return Load(len(times), errors, time.perf_counter() - start, float(p50), float(p99))


if __name__ == "__main__":
    stage.run("serving", main)
