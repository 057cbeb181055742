"""What goes wrong around the server, in this process."""

import asyncio
import re
import sqlite3
from contextlib import closing
from typing import Any

import httpx
import numpy as np
import pytest
from msgspec.structs import replace

from lookalike.api import problems
from lookalike.api.workers import Batcher
from lookalike.artifacts import descriptions
from lookalike.artifacts.descriptions import Embedding, describe
from lookalike.collection import thumbnails
from lookalike.collection.collection import Gallery
from lookalike.collection.query import Query
from lookalike.runtimes import openvino
from tests.helpers.hostile_pictures import many_scans
from tests.helpers.served_collection import FIRST, ITEM, PATHS, SIZE, Where, answered_here, as_sent, is_problem

pytestmark = pytest.mark.slow  # servers of their own


# --- limits of time, in this process ----------------------------------------------------------------------------------


def test_decoding_and_receiving_have_a_limit_of_time(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stalled() -> Any:
        yield b"\x89PNG"
        await asyncio.Event().wait()

    settings = {"seconds": 0.1, "upload_seconds": 0.2}
    late = answered_here(where, settings, lambda client: client.post("/search", content=stalled()))
    assert is_problem(late, problems.SLOW_UPLOAD)
    monkeypatch.setattr("lookalike.api.service.cores", lambda: 1)

    async def two(client: httpx.AsyncClient) -> Any:
        return await asyncio.gather(*(client.post("/search", content=large) for _ in range(2)))

    large = many_scans(50, 7000)
    late, never_begun = sorted(answered_here(where, settings, two), key=lambda answer: answer.status_code)
    assert is_problem(late, problems.TOO_SLOW)
    assert is_problem(never_begun, problems.QUEUE_FULL) and "decoded" in never_begun.json()["detail"]


def test_it_is_not_ready_before_the_network_is_loaded(where: Where) -> None:
    for method, target in (("GET", "/ready"), ("POST", "/search"), ("POST", "/items")):
        early = answered_here(
            where, {}, lambda client, method=method, target=target: client.request(method, target), load=False
        )
        assert is_problem(early, problems.NOT_READY)
    alive = answered_here(where, {}, lambda client: client.get(f"{ITEM}/similar"), load=False)
    assert alive.status_code == 200


# --- what goes wrong around it, in this process -----------------------------------------------------------------------


ONE_BY_ONE = {"batch": 1}  # a single network is loaded


def test_uploads_may_hold_so_much_memory_together(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    content = where.content()
    monkeypatch.setattr("lookalike.api.workers.HELD_MOST", len(content))

    async def ask(client: httpx.AsyncClient) -> Any:
        arrived, refused = asyncio.Event(), asyncio.Event()

        async def halting() -> Any:
            yield content
            arrived.set()
            await refused.wait()

        first = asyncio.create_task(client.post("/search", content=halting()))
        await arrived.wait()
        second = await client.post("/search", content=content)
        refused.set()
        return await first, second, await client.post("/search", content=content)

    first, second, after = answered_here(where, ONE_BY_ONE, ask)
    assert is_problem(second, problems.QUEUE_FULL) and "bytes of uploads" in second.json()["detail"]
    assert (first.status_code, after.status_code) == (200, 200)


def test_an_error_that_was_not_foreseen_says_nothing_and_the_next_request_is_tried(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, load = iter([RuntimeError("a secret of the machine")]), openvino.load

    def failing_once(*arguments: Any) -> Any:
        embed = load(*arguments)

        def run(pixels: np.ndarray) -> np.ndarray:
            for error in errors:
                raise error
            return embed(pixels)

        return run

    monkeypatch.setattr(openvino, "load", failing_once)

    async def ask(client: httpx.AsyncClient) -> Any:
        return [await client.post("/search", content=where.content()) for _ in range(2)]

    failed, after = answered_here(where, ONE_BY_ONE, ask, raising=False)
    assert is_problem(failed, problems.INTERNAL) and "secret" not in failed.text
    assert after.status_code == 200


def test_a_damaged_journal_is_the_operators_to_mend(own: Where, told: list[str]) -> None:
    own.journal.parent.mkdir()

    async def ask(client: httpx.AsyncClient) -> Any:
        own.journal.write_bytes(b"broken" * 1000)
        damaged = await client.get(ITEM)
        own.journal.unlink()
        return damaged, await client.get(ITEM)

    damaged, mended = answered_here(own, {}, ask, load=False)
    assert is_problem(damaged, problems.UNAVAILABLE) and mended.status_code == 200
    assert f"{own.journal} cannot be read" in (said := "\n".join(told)) and "restore it from a backup" in said


def test_a_journal_that_another_process_keeps_locked_changes_nothing(
    own: Where, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setattr("lookalike.collection.journal.WAIT", 0.05)

    async def ask(client: httpx.AsyncClient) -> Any:
        async def change() -> list[httpx.Response]:
            return [await client.post("/items?name=b.png", content=own.content()), await client.delete(ITEM)]

        await client.post("/items?name=a.png", content=own.content())
        with closing(sqlite3.connect(own.journal)) as other:
            other.execute("BEGIN IMMEDIATE")
            refused, images = await change(), (await client.get("/ready")).json()["images"]
        return refused, images, await change()

    refused, images, after = answered_here(own, ONE_BY_ONE, ask)
    assert all(is_problem(answer, problems.UNAVAILABLE) for answer in refused) and images == len(PATHS) + 1
    assert "nothing was changed, try again" in "\n".join(told)
    assert [answer.status_code for answer in after] == [201, 204]


def test_a_name_that_another_process_takes_meanwhile_is_taken(own: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Gallery.add

    def late(gallery: Gallery, *picture: Any, **options: Any) -> None:
        add(own.open().gallery, *picture, **options)
        add(gallery, *picture, **options)

    monkeypatch.setattr(Gallery, "add", late)
    answer = answered_here(own, ONE_BY_ONE, lambda client: client.post("/items?name=x.png", content=own.content()))
    assert is_problem(answer, problems.EXISTS) and answer.json()["detail"].startswith("x.png is in the collection")


@pytest.mark.parametrize("times", [1, 2])
def test_an_index_rebuilt_while_a_picture_is_embedded_is_asked_once_more(
    own: Where, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    sizes, submit = iter([24, 28][:times]), Batcher.submit

    def meanwhile(batcher: Batcher, embedding: Embedding, pixels: np.ndarray) -> Any:
        if pixels.size and (size := next(sizes, None)):
            own.rebuild(Embedding(embedding.network, size, "pad"))
        return submit(batcher, embedding, pixels)

    monkeypatch.setattr(Batcher, "submit", meanwhile)
    answer = answered_here(own, ONE_BY_ONE, lambda client: client.post("/search?k=3", content=own.content()))
    if times == 1:
        assert answer.json()["hits"] == as_sent(own.open().search(own.content(), Query(3)))
    else:
        assert is_problem(answer, problems.UNAVAILABLE) and "being rebuilt" in answer.json()["detail"]


def test_an_index_of_another_network_than_the_servers_is_the_operators_to_mend(own: Where, told: list[str]) -> None:
    async def ask(client: httpx.AsyncClient) -> Any:
        own.rebuild(Embedding(replace(describe(own.folder / "model"), fingerprint="another"), SIZE, "pad"))
        apart = await client.post("/search", content=own.content())
        own.rebuild()
        return apart, await client.post("/search", content=own.content())

    apart, together = answered_here(own, ONE_BY_ONE, ask)
    assert is_problem(apart, problems.UNAVAILABLE) and together.status_code == 200
    assert "the index was made by small another" in (said := "\n".join(told)) and "dvc repro index" in said


def test_a_broken_reader_of_texts_is_the_operators_to_mend(own: Where, told: list[str]) -> None:
    for name in descriptions.FILES:
        (own.folder / "model" / name).write_text("broken")

    async def ask(client: httpx.AsyncClient) -> Any:
        return [await client.post("/search", params={"text": "red", "label": label}) for label in ("3", "unheard")]

    for answer in answered_here(own, {}, ask, load=False):
        assert is_problem(answer, problems.UNAVAILABLE)
    assert re.search("cannot read texts: .*dvc repro --force model|tokenizers, .*pip install", "\n".join(told))


def test_a_collection_of_one_image_or_none_has_nothing_like_it(own: Where) -> None:
    own.rebuild(paths=[FIRST])

    async def ask(client: httpx.AsyncClient) -> Any:
        alone = await client.get(f"{ITEM}/similar"), await client.post("/search", content=own.content())
        await client.delete(ITEM)
        return *alone, await client.post("/search", content=own.content()), await client.get(f"{ITEM}/similar")

    similar, found, empty, gone = answered_here(own, ONE_BY_ONE, ask)
    assert (similar.json(), [hit["path"] for hit in found.json()["hits"]]) == ({"hits": []}, [FIRST])
    assert empty.json() == {"hits": []} and is_problem(gone, problems.UNKNOWN_ITEM)


def test_an_original_that_cannot_be_decoded_is_not_served(own: Where) -> None:
    (own.folder / "raw" / FIRST).write_bytes(b"broken")
    answer = answered_here(own, {}, lambda client: client.get(f"{ITEM}/thumbnail"), load=False)
    assert is_problem(answer, problems.NO_ORIGINAL) and "cannot be decoded" in answer.json()["detail"]


def test_damaged_pictures_of_a_journal_or_a_bundle_are_the_operators_to_mend(own: Where, told: list[str]) -> None:
    async def ask(client: httpx.AsyncClient) -> Any:
        added = (await client.post("/items?name=a.png", content=own.content())).headers["location"]
        with closing(sqlite3.connect(own.journal)) as file:
            file.execute("UPDATE images SET content = x'00'")
            file.commit()
        (own.folder / "raw" / thumbnails.FILE).write_bytes(b"broken")
        return await client.get(f"{added}/image"), await client.get(f"{ITEM}/image")

    assert all(is_problem(answer, problems.UNAVAILABLE) for answer in answered_here(own, ONE_BY_ONE, ask))
    said = "\n".join(told)
    assert "is damaged); restore it from a backup" in said and "lookalike bundle" in said


def test_a_form_of_an_unreadable_charset_is_a_broken_upload(where: Where) -> None:
    head = {"Content-Type": "multipart/form-data; boundary=a; charset=undefined"}
    body = b'--a\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n--a--\r\n'
    answer = answered_here(where, ONE_BY_ONE, lambda client: client.post("/search", content=body, headers=head))
    assert is_problem(answer, problems.BROKEN_UPLOAD) and "charset" in answer.json()["detail"]
