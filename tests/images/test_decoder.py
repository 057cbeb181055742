"""Decoding can be stopped: at every door, whatever a picture does to its decoder."""

import asyncio
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import psutil
import pytest

from lookalike.base.errors import LookalikeError
from lookalike.collection.query import Query
from lookalike.images import decode, decoder_process, parallel
from lookalike.images import decoder as decoding
from lookalike.images.decode import ImageError
from lookalike.images.decoder import Decoder, Decoders, TooSlowError
from tests.helpers import misbehaving
from tests.helpers.hostile_pictures import many_scans
from tests.helpers.pictures import picture
from tests.helpers.project import ROOT
from tests.helpers.small_collection import Built

LIMIT = 0.4  # of a core, in seconds, in place of 5
TOO_LONG = f"decoding took more than {LIMIT:g} seconds of a core"
DIED = "its decoder died (signal 11)"


@cache
def slow_picture() -> bytes:
    """A legal JPEG of 49 million pixels and 64 scans: 3 seconds of a core."""
    return many_scans(50, 7000)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SECONDS", LIMIT)


def burnt() -> float:
    """Seconds of a core that children of this process used that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def until(condition: Callable[[], bool]) -> None:
    """Wait, long enough for any machine."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


# --- one decoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "error", "said"),
    [(misbehaving.burn, TooSlowError, TOO_LONG), (misbehaving.burn_in_c, TooSlowError, TOO_LONG),
     (misbehaving.crash, ImageError, DIED), (misbehaving.exhaust, ImageError, "its decoder ran out of memory"),
     (misbehaving.fail, ZeroDivisionError, "a fault of ours")],
)  # fmt: skip
def test_what_a_decoder_dies_of_is_told_and_the_next_picture_is_decoded(
    work: Callable[[int], None], error: type[Exception], said: str
) -> None:
    decoder, before = Decoder(), burnt()
    for _ in range(2):
        with pytest.raises(error) as caught:
            decoder.run(work, 1)
        assert str(caught.value) == said
        assert decoder.run(misbehaving.double, 4) == 8
    decoder.close()
    assert burnt() - before < 20 * LIMIT  # two pictures, and what three processes import


def test_the_others_of_a_chunk_are_decoded_in_order() -> None:
    names = ["double", "crash", "burn", "double", "chatter", "crash", "double"]
    decoder = Decoder()
    found = list(decoder.each(misbehaving.any_of, [(name, number) for number, name in enumerate(names)]))
    decoder.close()
    assert [str(each) for each in found] == ["0", DIED, TOO_LONG, "6", "4", DIED, "12"]


def test_a_decoder_that_hangs_is_ended_too() -> None:
    decoder = Decoder()
    decoder.run(misbehaving.double, 1)
    with pytest.raises(TooSlowError, match="decoding took more than 1 seconds"):
        decoder.run(misbehaving.wait, 3600, patience=1)
    assert decoder.run(misbehaving.double, 4) == 8
    decoder.close()


def test_where_a_process_cannot_limit_itself_the_parent_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setattr(decoder_process, "LIMITS", False)
    monkeypatch.setattr(decoding, "SECONDS", 1000)
    decoder = Decoder()
    with pytest.raises(TooSlowError, match="decoding took more than 1 seconds"):
        decoder.run(misbehaving.hang, 1, patience=1)
    assert decoder.run(misbehaving.double, 4) == 8
    decoder.close()


def test_what_nobody_waits_for_is_ended() -> None:
    decoder = Decoder()
    results = decoder.each(misbehaving.any_of, [("double", 1), ("burn", 2)])
    next(results)
    process = psutil.Process(decoder._process.pid)
    results.close()
    assert is_gone(process)
    assert decoder.run(misbehaving.double, 4) == 8
    decoder.close()


def test_one_that_died_in_idleness_is_replaced() -> None:
    decoder = Decoder()
    decoder.run(misbehaving.double, 1)
    decoder._process.kill()
    decoder._process.wait()
    assert decoder.run(misbehaving.double, 4) == 8
    decoder.close()


def test_one_that_cannot_begin_is_no_fault_of_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "__name__", "lookalike.no_such_module")
    with pytest.raises(LookalikeError, match=r"lookalike\.no_such_module failed to start, exit status 1"):
        Decoder().run(misbehaving.double, 1)


def test_it_imports_little() -> None:
    """Else a search would wait for it."""
    images = "lookalike.images.decoder_process, lookalike.images.previews"
    script = f"import sys, {images}, lookalike.api.guard; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    heavy = {
        "pandas",
        "pydantic",
        "numpy",
        "faiss",
        "openvino",
        "tensorflow",
        "starlette",
        "multiprocessing",
        "sqlite3",
    }
    assert not heavy & set(loaded.split())


def test_memory_of_a_decoder_does_not_grow(tmp_path: Path) -> None:
    decoder, sizes = Decoder(), []
    monkey = [many_scans(0, side) for side in (500, 1000, 1500)]
    for number in range(45):
        decoder.run(decode.square, monkey[number % 3], 64, "pad", 10**7)
        if number in (8, 44):
            sizes.append(decoder.run(misbehaving.memory, 0))
    decoder.close()
    assert sizes[1] < sizes[0] + 20_000_000


def test_no_more_processes_than_decoders() -> None:
    decoders = Decoders(2)
    assert [decoders.run(misbehaving.double, number) for number in range(5)] == [0, 2, 4, 6, 8]
    assert sum(decoder._process is not None for decoder in decoders._all) == 1  # the last used is used first
    decoders.close()


# --- the stage preprocess ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_workers_give_what_one_gives_in_order(tmp_path: Path) -> None:
    paths = []
    for seed in range(40):
        path = tmp_path / f"{seed}.png"
        picture(seed).save(path)
        paths.append(path)
    paths[7].write_bytes(b"broken")
    paths[21].write_bytes(slow_picture())
    one, two = (list(parallel.decode_files(paths, 32, "crop", 10**8, workers)) for workers in (1, 2))
    assert [d.sha256 for d in one] == [d.sha256 for d in two] == [sha256(p.read_bytes()).hexdigest() for p in paths]
    assert [d.reason for d in one] == [d.reason for d in two]
    assert {number: d.reason for number, d in enumerate(one) if d.pixels is None} == {
        7: "not an image in a known format (JPEG, PNG, WEBP, BMP, GIF, TIFF)", 21: TOO_LONG,
    }  # fmt: skip
    for path, a, b in zip(paths, one, two, strict=True):
        if a.pixels is not None:
            assert np.array_equal(a.pixels, b.pixels)
            assert a.square == decode.square(path.read_bytes(), 32, "crop", 10**8)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        list(parallel.decode_files([tmp_path / "a.png"], 32, "pad", 100))


DECODE = """
import itertools, pathlib, sys, threading
sys.path.insert(0, sys.argv[2])
from tests.helpers import misbehaving
from lookalike.images import decoder as decoding, parallel
decoder = decoding.Decoder()
threading.Thread(target=decoder.run, args=(misbehaving.burn, 1)).start()
paths = [pathlib.Path(sys.argv[1])] * 100_000
for decoded in itertools.islice(parallel.decode_files(paths, 32, "pad", 10_000, workers=2), 1):
    print("decoded", flush=True)
    input()  # in the loop: the decoders are there
"""


def test_no_decoder_outlives_a_killed_run(tmp_path: Path) -> None:
    """Neither those that wait for work nor the one that is burning a core."""
    picture(0).save(tmp_path / "a.png")
    script = tmp_path / "decode.py"
    script.write_text(DECODE)
    command = [sys.executable, script, tmp_path / "a.png", ROOT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "decoded\n"
        decoders = psutil.Process(run.pid).children(recursive=True)
        assert len(decoders) >= 2
        run.kill()
    until(lambda: all(map(is_gone, decoders)))


# --- the library, and what stands on it -------------------------------------------------------------------------------


@pytest.mark.slow
def test_pictures_go_on_after_one_that_takes_too_long(built: Built) -> None:
    from lookalike.collection.picture_search import Pictures
    from lookalike.ui.session import start_from

    opened = Pictures(*(built.folder / name for name in ("index", "model", "changes")))
    for ask in (
        opened.embed,
        lambda content: opened.search(content, Query(1)),
        lambda content: opened.add("a", "", content),
    ):
        with pytest.raises(TooSlowError) as caught:
            ask(slow_picture())
        assert str(caught.value) == TOO_LONG
    assert opened.search(built.picture("red/03.jpg").read_bytes(), Query(1))[0].path == "red/03.jpg"
    with pytest.raises(LookalikeError, match=f"This file cannot be searched with: {TOO_LONG}"):
        start_from(slow_picture())


@pytest.mark.slow
def test_a_server_answers_and_nothing_burns_on(built: Built) -> None:
    """Where the client has waited as long as it has to, the decoder ends; the next picture is searched with."""
    from lookalike.api import problems
    from lookalike.api.problems import Problem
    from lookalike.api.service import Service
    from lookalike.api.settings import Settings

    folders = (built.folder / name for name in ("index", "model", "changes", "raw"))
    decoding.SECONDS = 1000.0
    service = Service(Settings(*folders, seconds=1))
    service.open()
    service.load().result()
    me, before, mine = psutil.Process(), burnt(), set(psutil.Process().children())

    async def ask(content: bytes) -> object:
        try:
            return (await service.search(content, Query(1, -1, None, None, None)))[0].path
        except Problem as problem:
            return problem.kind

    content = built.picture("red/03.jpg").read_bytes()
    try:
        until(lambda: asyncio.run(ask(content)) == "red/03.jpg")  # not before a decoder has started in a second
        assert asyncio.run(ask(slow_picture())) is problems.TOO_SLOW
        until(lambda: all(sum(each.cpu_times()[:2]) < 1 for each in set(me.children()) - mine))
        until(lambda: asyncio.run(ask(content)) == "red/03.jpg")
    finally:
        service.close()
    assert burnt() - before < 10  # the picture's second, and what some processes import; 3 at least without an end


def test_ordinary_pictures_do_not_wait_for_those_that_are_much_work() -> None:
    from lookalike.api import guard, problems
    from lookalike.api.pictures import Lane
    from lookalike.api.problems import Problem

    light, heavy = Lane(1, 8), Lane(1, 1, nice=10)

    async def together() -> int:
        waiting = asyncio.create_task(heavy.run(lambda run: run(misbehaving.wait, 2), 60))
        await asyncio.sleep(0)
        with pytest.raises(Problem) as full:
            await heavy.run(lambda run: run(misbehaving.double, 1), 60)
        assert full.value.kind is problems.QUEUE_FULL
        with pytest.raises(guard.LaboriousError):
            await light.run(lambda run: run(guard.square, many_scans(20, 1000), 32, "pad", 10**7, 10**6), 60)
        found = await light.run(lambda run: run(misbehaving.double, 4), 60)
        await waiting
        return found

    assert asyncio.run(together()) == 8
    light.close()
    heavy.close()


@pytest.mark.parametrize(("work", "status"), [(misbehaving.crash, 422), (misbehaving.burn, 422)])
def test_a_client_is_told_what_became_of_its_picture(work: Callable[[int], None], status: int) -> None:
    from lookalike.api.pictures import Lane
    from lookalike.api.problems import Problem

    lane = Lane(1, 1)
    with pytest.raises(Problem) as caught:
        asyncio.run(lane.run(lambda run: run(work, 1), 60))
    assert caught.value.kind.status == status and caught.value.detail in (DIED, TOO_LONG)
    lane.close()
