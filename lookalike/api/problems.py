"""Errors as a client sees them: RFC 9457 problems, each with a type, a status and a sentence."""

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

MEDIA_TYPE = "application/problem+json"
DETAIL_MOST = 1000  # characters


@dataclass(frozen=True)
class Kind:
    """A type of problem."""

    name: str
    status: int
    title: str  # the same for every problem of the type
    example: str = field(compare=False)  # a detail
    headers: tuple[str, ...] = ()  # names of headers that every such answer has

    @property
    def type(self) -> str:
        """The URN that identifies it."""
        return f"urn:lookalike:problem:{self.name}"


@dataclass
class Problem(Exception):
    """An occurrence of a problem; raised anywhere, answered by the application."""

    kind: Kind
    detail: str
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> JSONResponse:
        """Make the HTTP response."""
        kind = self.kind
        content = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": self.detail[:DETAIL_MOST]}
        return JSONResponse(content, kind.status, {"Cache-Control": "no-store", **self.headers}, MEDIA_TYPE)


class ProblemBody(BaseModel):
    """The body of every error, by RFC 9457."""

    model_config = ConfigDict(title="Problem", json_schema_extra={"additionalProperties": False})

    type: str = Field(description="What kind of problem; a program decides by it.")
    title: str = Field(description="The kind, for a person.")
    status: int = Field(description="The HTTP status once more.", ge=400, le=599)
    detail: str = Field(description="What went wrong this time, in a sentence.")


INVALID = Kind(
    "invalid-request", 422, "A parameter is not as documented", "k: input should be less than or equal to 1000"
)
NO_PICTURE = Kind(
    "no-picture",
    422,
    "The request holds no picture",
    "the body is empty; send the picture as it is, or as the field `file` of a form",
)
BROKEN_UPLOAD = Kind("broken-upload", 400, "The body cannot be read", "Missing boundary in multipart.")
NOT_AN_IMAGE = Kind(
    "not-an-image",
    415,
    "The content is no image of a known format",
    "not an image in a known format (JPEG, PNG, WEBP, BMP, GIF, TIFF)",
)
BROKEN_IMAGE = Kind(
    "broken-image",
    422,
    "The picture cannot be decoded",
    "cannot be decoded: OSError: image file is truncated (12 bytes not processed)",
)
FEATURELESS = Kind(
    "featureless",
    422,
    "The network sees nothing in the picture",
    "the picture's embedding has no direction, so it has no similarity with anything",
)
SEVERAL_FRAMES = Kind(
    "several-frames",
    422,
    "The picture has more than one frame",
    "the GIF has more than one frame; send a single picture",
)
TWO_FORMATS = Kind(
    "two-formats",
    422,
    "The content is an image and something else too",
    "the JPEG is a ZIP archive too; send the picture alone",
)
TOO_MANY_BYTES = Kind("too-many-bytes", 413, "The body is too large", "more than 20000000 bytes; send a smaller file")
TOO_MANY_PIXELS = Kind(
    "too-many-pixels", 413, "The picture is too large", "60000 x 60000 pixels, more than the 50000000 that are accepted"
)
TOO_SLOW = Kind(
    "too-slow-to-decode", 422, "The picture takes too long to decode", "decoding took more than 5 seconds of a core"
)
SLOW_UPLOAD = Kind(
    "slow-upload", 408, "The body did not arrive in time", "the body took more than 30 seconds to arrive"
)
UNKNOWN_ITEM = Kind("unknown-item", 404, "No such image in the collection", "no image of the collection has this id")
NO_ORIGINAL = Kind(
    "no-original", 404, "The image's file is not here", "the image is in the index, but its file is not on this machine"
)
EXISTS = Kind(
    "item-exists",
    409,
    "The name is taken",
    "cat/old.jpg is in the collection already; give another name, or replace=true",
)
UNAUTHORIZED = Kind(
    "unauthorized",
    401,
    "A token is needed",
    "send the header Authorization: Bearer TOKEN",
    headers=("WWW-Authenticate",),
)
FORBIDDEN = Kind("forbidden", 403, "Not from there", "https://elsewhere.example is not allowed to change anything here")
NO_ROUTE = Kind("not-found", 404, "No such address", "nothing is at this address; see /openapi.json")
METHOD = Kind("method-not-allowed", 405, "Not by this method", "this address does not take this method; see Allow")
QUEUE_FULL = Kind(
    "queue-full", 503, "Too many requests at a time", "128 requests are under way; try again", headers=("Retry-After",)
)
UNAVAILABLE = Kind(
    "unavailable", 503, "Not able to answer now", "the collection is being changed; try again", headers=("Retry-After",)
)
NOT_READY = Kind("not-ready", 503, "Not ready yet", "the network is being loaded", headers=("Retry-After",))
INTERNAL = Kind("internal", 500, "A mistake of the server", "see the server's log")

KINDS = [each for each in list(globals().values()) if isinstance(each, Kind)]
BY_NAME = {kind.name: kind for kind in KINDS}
PICTURE = (
    NO_PICTURE,
    BROKEN_UPLOAD,
    NOT_AN_IMAGE,
    BROKEN_IMAGE,
    FEATURELESS,
    SEVERAL_FRAMES,
    TWO_FORMATS,
    TOO_MANY_BYTES,
    TOO_MANY_PIXELS,
    TOO_SLOW,
    SLOW_UPLOAD,
    QUEUE_FULL,
    NOT_READY,
)
ANYWHERE = (UNAUTHORIZED, FORBIDDEN, INTERNAL)
HEADERS = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}},
}


def retry(kind: Kind, detail: str) -> Problem:
    """Make a problem that goes away: the client is told to try again in a second."""
    return Problem(kind, detail, {"Retry-After": "1"})


def documented(*kinds: Kind, token: bool = True) -> dict[int | str, dict[str, Any]]:
    """Document the problems that an operation can answer, as OpenAPI's `responses`; `token`: whether it needs one."""
    answers: dict[int | str, dict[str, Any]] = {}
    anywhere = {kind for kind in ANYWHERE if token or kind is not UNAUTHORIZED}
    for kind in sorted({*kinds} | anywhere, key=lambda each: (each.status, each.name)):
        answer = answers.setdefault(
            kind.status,
            {
                "description": HTTPStatus(kind.status).phrase,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        value = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": kind.example}
        answer["content"][MEDIA_TYPE]["examples"][kind.name] = {"summary": kind.title, "value": value}
        if kind.headers:
            answer.setdefault("headers", {}).update({name: HEADERS[name] for name in kind.headers})
    return answers


def answer_errors(app: Starlette) -> None:
    """Answer every error with a problem."""

    async def problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)  # noqa: S101  # for the type checker
        return error.response()

    async def framework(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101  # for the type checker
        kind = {404: NO_ROUTE, 405: METHOD}.get(error.status_code, BROKEN_UPLOAD)
        detail = kind.example if kind is not BROKEN_UPLOAD else str(error.detail)
        return Problem(kind, detail, dict(error.headers or {})).response()

    async def internal(_: Request, __: Exception) -> Response:  # uvicorn logs it
        return Problem(INTERNAL, "an error that was not foreseen; the server's log has it").response()

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(Exception, internal)
