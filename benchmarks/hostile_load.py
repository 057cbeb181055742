"""What honest searches notice of an attack on `lookalike serve` with pictures that are made to take long.

    python benchmarks/hostile_load.py                             # data/index, data/model, data/raw; two minutes a kind
    python benchmarks/hostile_load.py --seconds 5 --kinds fill-bytes

Four connections ask /search with a picture of the collection each quarter of a second: first while nothing else
happens, then while --rate hostile pictures a second are uploaded, whether or not the ones before were answered.
For each kind: the 50th and 95th percentile of honest answers, errors (all but 200), what the hostile ones were
answered, seconds of a core that server and decoders used, and the most memory that they had together.

fill-bytes  a JPEG of 19 MB, nearly all of it fill bytes before a marker
chunks      a PNG of 19 MB, in 1,600,000 chunks: 5 seconds of a core, then it is stopped
scans       a JPEG of 0.2 MB, 49 megapixels and 64 scans: 3 seconds of a core

Attacker and honest clients are processes of their own, on the server's machine.
"""

import argparse
import asyncio
import io
import itertools
import json
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's library, whatever is installed

from benchmarks.common import markdown, serving_parser
from benchmarks.serving import request, served
from lookalike.artifacts.arrays import map_names
from lookalike.base import script
from lookalike.base.machine import cores, cpu_name

HONEST, EVERY = 4, 0.25  # connections, and seconds from question to question of each
PATIENCE = 60  # seconds until an answer counts as an error


def fill_bytes() -> bytes:
    """A JPEG of 19 MB of fill bytes."""
    content = _saved(Image.new("RGB", (24, 18), "red"), "JPEG")
    return content[:2] + b"\xff" * 19_000_000 + content[2:]


def chunks() -> bytes:
    """A PNG of 19 MB of empty chunks."""
    content = _saved(Image.new("RGB", (24, 18), "red"), "PNG")
    empty = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    return content[:33] + empty * 1_580_000 + content[33:]


def scans() -> bytes:
    """A progressive JPEG of 49 megapixels whose last scan comes again and again."""
    content = _saved(Image.new("L", (7000, 7000), 90), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (64 - content.count(b"\xff\xda")) + b"\xff\xd9"


KINDS: dict[str, Callable[[], bytes]] = {"fill-bytes": fill_bytes, "chunks": chunks, "scans": scans}


@dataclass
class Used:
    """What the server and its decoders used: seconds of cores, and bytes of memory at most."""

    seconds: float = 0
    memory: int = 0


def main() -> None:
    """Read the arguments, load, print a table."""
    parser = serving_parser(__doc__, "idle, and again under attack")
    parser.add_argument("--rate", type=float, default=8, help="hostile uploads a second (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--attack", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.attack:
        print(json.dumps(asyncio.run(attacks(args.attack, KINDS[args.kinds[0]](), args.rate, args.seconds))))
        return
    paths = map_names(args.index)[0]
    honest = [request("POST", "/search?k=10", (args.images / str(path)).read_bytes()) for path in paths[:64]]
    print(f"{' '.join(['python', *sys.argv])}\n{cpu_name()}, {cores()} cores\n")
    rows: list[dict[str, Any]] = []
    for kind in args.kinds:
        with served(args) as (port, process):
            asyncio.run(questions(port, honest, min(5, args.seconds)))  # warms up
            for rate in (0, args.rate):
                with measured(process) as used, attacked(port, kind, rate, args.seconds) as hostile:
                    times, statuses = asyncio.run(questions(port, honest, args.seconds))
                p50, p95 = np.percentile(times, [50, 95]) * 1000
                answers = ", ".join(f"{count} x {status}" for status, count in sorted(hostile.items()))
                rows.append(
                    {
                        "kind": kind,
                        "a second": rate,
                        "p50 ms": round(p50),
                        "p95 ms": round(p95),
                        "errors": f"{len(times) - statuses['200']} of {len(times)}",
                        "hostile answers": answers,
                        "core seconds": round(used.seconds),
                        "peak MB": round(used.memory / 1e6),
                    }
                )
    print(markdown(pd.DataFrame(rows)))
    for kind in args.kinds:
        idle, loaded = (row["p95 ms"] for row in rows if row["kind"] == kind)
        print(f"{kind}: p95 under attack {loaded / idle:.1f} times idle (goal: 3)")


async def questions(port: int, honest: list[bytes], seconds: float) -> tuple[list[float], Counter[str]]:
    """Ask honestly for a while; seconds until each answer, and how often each status came."""
    end, waiting = time.perf_counter() + seconds, itertools.cycle(honest)
    times, statuses = list[float](), Counter[str]()

    async def ask(first: float) -> None:
        await asyncio.sleep(first)
        while time.perf_counter() < end:
            begun = time.perf_counter()
            statuses[await answer(port, next(waiting))] += 1
            times.append(time.perf_counter() - begun)
            await asyncio.sleep(max(0, EVERY - times[-1]))

    await asyncio.gather(*(ask(EVERY * number / HONEST) for number in range(HONEST)))
    return times, statuses


@contextmanager
def attacked(port: int, kind: str, rate: float, seconds: float) -> Iterator[Counter[str]]:
    """Have another process attack, if at any rate; what it was answered is known afterwards."""
    statuses = Counter[str]()
    if not rate:
        yield statuses
        return
    options = [f"--attack={port}", f"--rate={rate}", f"--seconds={seconds}", "--kinds", kind]
    with subprocess.Popen([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True) as attacker:
        yield statuses
        statuses.update(json.loads(attacker.communicate()[0]))


async def attacks(port: int, picture: bytes, rate: float, seconds: float) -> Counter[str]:
    """Upload a picture so often, whether or not the uploads before were answered; how often each status came."""
    end, content, waiting = time.perf_counter() + seconds, request("POST", "/search", picture), []
    while time.perf_counter() < end:
        waiting.append(asyncio.create_task(answer(port, content)))
        await asyncio.sleep(1 / rate)
    return Counter(await asyncio.gather(*waiting))


async def answer(port: int, content: bytes) -> str:
    """The status of an answer, on a connection of its own, or what became of it instead."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(content)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            writer.close()
            return head.split()[1].decode()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return type(error).__name__


@contextmanager
def measured(process: int) -> Iterator[Used]:
    """Watch a process and its children, those too that end meanwhile."""
    server, used, over = psutil.Process(process), Used(), threading.Event()
    before = cpu(server)

    def watch() -> None:
        while not over.wait(0.1):
            used.memory = max(used.memory, sum(memory(each) for each in [server, *server.children(recursive=True)]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield used
    finally:
        over.set()
        watcher.join()
        used.seconds = cpu(server) - before


def cpu(server: psutil.Process) -> float:
    """Seconds of a core of a process, its children and those that it had."""
    living = [each for each in server.children(recursive=True)]
    total = sum(server.cpu_times()[:4])  # its own, and its ended children's
    for each in living:
        with suppress(psutil.NoSuchProcess):
            total += sum(each.cpu_times()[:2])
    return float(total)


def memory(process: psutil.Process) -> int:
    """Resident bytes; none of one that has ended."""
    with suppress(psutil.NoSuchProcess):
        return int(process.memory_info().rss)
    return 0


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


if __name__ == "__main__":
    script.run("hostile_load", main)
