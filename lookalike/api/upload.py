"""Uploads: received into memory, counted while they arrive; file names are not read."""

import asyncio
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from lookalike.api import problems
from lookalike.api.problems import Problem
from lookalike.api.settings import Settings
from lookalike.api.workers import Place

FIELDS_MOST = 10
FIELD_BYTES = 4096
# Bytes of 0xFF that may follow one another in a JPEG; no segment is so long. A picture of 19 MB of them is refused as
# it arrives, before it costs the searches of others anything.
FILL_MOST = 1 << 18
JPEG = re.compile(rb"(\A|\r\n\r\n)\xff\xd8\xff")  # begins with a picture: the body, or the part of a form
# What no picture is sent as; anything else is taken for one, as curl calls it application/x-www-form-urlencoded.
REFUSED = ("application/json", "application/xml", "text/")


@dataclass(frozen=True)
class Upload:
    """A picture, and the other fields of a form."""

    content: bytes
    fields: dict[str, str] = field(default_factory=dict)


class InMemory(MultiPartParser):
    """Starlette's form parser, with files in memory: their size is limited already."""

    spool_max_size = 1 << 40


def has_body(request: Request) -> bool:
    """Say whether the request has a body; in HTTP/1.1 one of two headers declares it (RFC 9112, 6.3)."""
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


def declared_length(request: Request) -> int:
    """Return the declared length of the body in bytes; 0 where there is none."""
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdigit() else 0


async def receive(request: Request, settings: Settings, place: Place) -> Upload:
    """Read a picture: the field `file` of a form, or the body itself. Raises Problem as soon as it is too large."""
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared.startswith(REFUSED):
        raise Problem(
            problems.NOT_AN_IMAGE,
            f"{declared} is no image; send the picture as it is, as image/*, "
            "application/octet-stream or multipart/form-data",
        )
    if declared_length(request) > settings.max_bytes:
        raise _too_many(settings)
    try:
        async with asyncio.timeout(settings.upload_seconds):
            if declared == "multipart/form-data":
                upload = await _form(request, settings, place)
            else:
                upload = Upload(b"".join([chunk async for chunk in _counted(request, settings, place)]))
    except TimeoutError:
        raise Problem(
            problems.SLOW_UPLOAD, f"the body took more than {settings.upload_seconds:g} seconds to arrive"
        ) from None
    except ClientDisconnect:
        raise Problem(problems.BROKEN_UPLOAD, "the connection was closed before the body was complete") from None
    if not upload.content:
        raise Problem(
            problems.NO_PICTURE, "the picture is empty; send it as the body, or as the field `file` of a form"
        )
    return upload


async def _counted(request: Request, settings: Settings, place: Place) -> AsyncGenerator[bytes, None]:
    jpeg, fill = None, 0  # whether it is one, and bytes of whole chunks of 0xFF since anything else came
    async for chunk in request.stream():
        place.holds(len(chunk))
        if place.held > settings.max_bytes:
            raise _too_many(settings)
        jpeg = bool(JPEG.search(chunk)) if jpeg is None else jpeg
        fill = fill + len(chunk) if jpeg and chunk.count(b"\xff") == len(chunk) else 0
        if fill > FILL_MOST:
            raise Problem(problems.BROKEN_IMAGE, f"a JPEG with more than {FILL_MOST} fill bytes in a row; save it anew")
        yield chunk


async def _form(request: Request, settings: Settings, place: Place) -> Upload:
    body = _counted(request, settings, place)
    parser = InMemory(request.headers, body, max_files=1, max_fields=FIELDS_MOST, max_part_size=FIELD_BYTES)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(problems.BROKEN_UPLOAD, f"the form cannot be read: {error.message}") from None
    except (KeyError, UnicodeError, ValueError):
        raise Problem(
            problems.BROKEN_UPLOAD, "the form cannot be read: a part's head, or what is said of its charset, is broken"
        ) from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Problem(problems.NO_PICTURE, "the form has no field `file` that holds a file")
        return Upload(await file.read(), {name: value for name, value in form.items() if isinstance(value, str)})
    finally:
        await form.close()


def _too_many(settings: Settings) -> Problem:
    return Problem(problems.TOO_MANY_BYTES, f"more than {settings.max_bytes} bytes; send a smaller file")
