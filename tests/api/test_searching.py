"""The server's searches, as a client meets them, and every mistake of a client."""

import io
from typing import Any

import pytest
from PIL import Image

from lookalike.api import problems
from lookalike.api.schema import id_of
from lookalike.collection.query import Query
from tests.helpers.served_collection import FIRST, ITEM, SECRET, Server, Where, as_sent, is_problem, serving

pytestmark = pytest.mark.slow  # servers of their own


# --- searching --------------------------------------------------------------------------------------------------------


def test_a_search_finds_what_the_command_finds(server: Server, where: Where) -> None:
    content, alone = where.content(), where.open()
    expected = as_sent(alone.search(content, Query(5)))
    assert server.search(content, k=5).json()["hits"] == expected
    answer = server.client.post("/search?k=5", files={"file": ("../../x", content, "text/html")})
    assert answer.json()["hits"] == expected
    assert expected[0]["path"] == FIRST
    assert server.search(content, k=41).json()["hits"] == as_sent(where.open().search(content, Query(1000)))  # all 40
    assert len(server.client.get(f"{ITEM}/similar?k=40").json()["hits"]) == 39
    only = server.search(content, k=3, label="4", min_similarity=-0.5).json()["hits"]
    assert only == as_sent(alone.search(content, Query(3, -0.5, "4")))
    assert len(server.search(content).json()["hits"]) == 10


def test_similar_needs_no_network(server: Server, where: Where) -> None:
    before = server.figure("lookalike_batch_size_count")
    answer = server.client.get(f"/items/{id_of(FIRST)}/similar", params={"k": 39})
    assert answer.json()["hits"] == as_sent(where.open().gallery.similar(FIRST, Query(39)))
    assert server.figure("lookalike_batch_size_count") == before


def test_images_are_served_without_their_metadata(server: Server, where: Where) -> None:
    for path, kind in ((FIRST, "PNG"), ("3/digit_0001.jpg", "JPEG")):
        assert SECRET.encode() in where.content(path)
        answer = server.client.get(f"/items/{id_of(path)}/image")
        image = Image.open(io.BytesIO(answer.content))
        assert (image.format, image.size, dict(image.getexif())) == (kind, (60, 40), {})
        assert SECRET.encode() not in answer.content
        assert answer.headers["content-type"] == f"image/{kind.lower()}"
        tag = {"If-None-Match": answer.headers["etag"]}
        assert server.client.get(f"/items/{id_of(path)}/image", headers=tag).status_code == 304
        assert server.client.get(f"/items/{id_of(path)}/thumbnail", headers=tag).status_code == 200
    small = server.client.get(f"/items/{id_of(FIRST)}/thumbnail", params={"size": 30})
    assert Image.open(io.BytesIO(small.content)).size == (30, 20)


def test_an_original_outside_the_folder_is_not_served(own: Where) -> None:
    (own.folder / "secret.png").write_bytes(own.content())
    (own.folder / "raw" / FIRST).unlink()
    (own.folder / "raw" / FIRST).symlink_to(own.folder / "secret.png")
    (own.folder / "raw" / "3/digit_0000.png").unlink()
    with serving(own) as server:
        for path in (FIRST, "3/digit_0000.png"):
            assert is_problem(server.client.get(f"/items/{id_of(path)}/image"), problems.NO_ORIGINAL)


def test_ids_are_looked_up_and_nothing_else(server: Server) -> None:
    for text in (id_of("../secret.png"), id_of("/etc/passwd"), id_of("3/digit_0003.png\0"), "..", "%2e%2e", "é", "A",
                 id_of(FIRST) + "=", id_of("3/./digit_0003.png")):  # fmt: skip
        assert server.client.get(f"/items/{text}/image").status_code == 404


# --- every error ------------------------------------------------------------------------------------------------------


WRONG: list[tuple[str, str, dict[str, Any], problems.Kind]] = [
    ("GET", f"{ITEM}/similar?k=0", {}, problems.INVALID),
    ("GET", f"{ITEM}/similar?k=1001", {}, problems.INVALID),
    ("GET", f"{ITEM}/similar?k=x", {}, problems.INVALID),
    ("GET", f"{ITEM}/similar?min_similarity=nan", {}, problems.INVALID),
    ("GET", f"{ITEM}/similar?label=5", {}, problems.INVALID),
    ("GET", f"{ITEM}/thumbnail?size=9999", {}, problems.INVALID),
    ("GET", "/items/nothing/similar", {}, problems.UNKNOWN_ITEM),
    ("GET", "/items/nothing", {}, problems.UNKNOWN_ITEM),
    ("DELETE", "/items/nothing", {}, problems.UNKNOWN_ITEM),
    ("GET", "/nothing", {}, problems.NO_ROUTE),
    ("PUT", "/search", {}, problems.METHOD),
    ("POST", "/search", {}, problems.NO_PICTURE),
    ("POST", "/search", {"data": {"file": "text"}, "files": {"other": b"x"}}, problems.NO_PICTURE),
    ("POST", "/search", {"files": {"file": b""}}, problems.NO_PICTURE),
    ("POST", "/search", {"json": {"url": "http://127.0.0.1/x.png"}}, problems.NOT_AN_IMAGE),
    ("POST", "/search", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, problems.BROKEN_UPLOAD),
    ("POST", "/search", {"content": b"--a\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=a"}},
     problems.NO_PICTURE),
    ("POST", "/search?label=5", {"files": {"file": "GOOD"}}, problems.INVALID),
    ("POST", "/search?k=1001", {"files": {"file": "GOOD"}}, problems.INVALID),
    ("POST", "/items?label=3&name=digit_0003.png", {"files": {"file": "GOOD"}}, problems.EXISTS),
    ("POST", "/items", {"files": {"file": "GOOD"}, "data": {"name": "x.exe"}}, problems.INVALID),
    ("POST", "/items", {"files": {"file": "GOOD"}, "data": {"name": "x.png", "label": "../.."}}, problems.INVALID),
    ("POST", "/items", {"files": {"file": "GOOD"}, "data": {"name": ".x.png"}}, problems.INVALID),
    ("POST", "/items", {"files": {"file": "GOOD"}, "data": {"name": "a\nb.png"}}, problems.INVALID),
    ("POST", "/items", {"files": {"file": "GOOD"}, "data": {"replace": "perhaps"}}, problems.INVALID),
    ("POST", "/items", {"content": b"x" * 10}, problems.NOT_AN_IMAGE),
]  # fmt: skip


@pytest.mark.parametrize(("method", "target", "sent", "kind"), WRONG, ids=[f"{m} {t} {k.name}" for m, t, _, k in WRONG])
def test_every_mistake_has_its_problem(
    server: Server, where: Where, method: str, target: str, sent: dict[str, Any], kind: problems.Kind
) -> None:
    if sent.get("files") == {"file": "GOOD"}:
        sent = {**sent, "files": {"file": where.content()}}
    assert is_problem(server.client.request(method, target, **sent), kind)


@pytest.mark.parametrize(
    ("method", "target", "sent", "detail"),
    [
        ("POST", "/search?limit=3", {}, "unknown parameter 'limit'; Known: k, label, min_similarity, "),
        ("POST", "/search?min_similarty=0.5", {}, "unknown parameter 'min_similarty'; did you mean min_similarity?"),
        ("POST", "/search?id=x", {}, "unknown parameter 'id'"),
        ("POST", "/search", {"data": {"k": "3"}}, "unknown field of the form 'k'; none is known here"),
        ("POST", "/items?lable=3", {}, "unknown parameter 'lable'; did you mean label? Known: label, name, replace"),
        ("POST", "/items", {"data": {"lable": "3"}}, "unknown field of the form 'lable'; did you mean label?"),
        ("GET", f"{ITEM}/similar?id=x", None, "unknown parameter 'id'"),
        ("GET", f"{ITEM}/image?size=64", None, "unknown parameter 'size'; none is known here"),
        ("DELETE", f"{ITEM}?path=3", None, "unknown parameter 'path'; none is known here"),
    ],
)  # fmt: skip
def test_what_nothing_reads_is_refused(
    server: Server, where: Where, method: str, target: str, sent: dict[str, Any] | None, detail: str
) -> None:
    picture = {} if sent is None else {"files": {"file": where.content()}, **sent}
    answer = server.client.request(method, target, **picture)
    assert is_problem(answer, problems.INVALID) and answer.json()["detail"].startswith(detail), answer.json()
    assert server.client.get("/health?t=1").status_code == 200
    assert server.client.get(ITEM).status_code == 200
