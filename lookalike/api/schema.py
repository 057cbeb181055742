"""Schemas of requests and answers, for pydantic and OpenAPI; docs/api.md is made from them."""

import base64
import binascii
from collections.abc import Callable, Coroutine, Iterable
from inspect import Parameter, signature
from typing import Annotated, Any, get_type_hints

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model
from typing_extensions import TypedDict

from lookalike.api import problems
from lookalike.api.problems import Problem
from lookalike.base.errors import closest


def id_of(path: str) -> str:
    """Make the id of an image from its path in the collection: opaque, and no path to this machine's files.

    >>> id_of("3/digit_0003.png")
    'My9kaWdpdF8wMDAzLnBuZw'
    """
    return base64.urlsafe_b64encode(path.encode("utf-8", "surrogatepass")).rstrip(b"=").decode()


def path_of_id(text: str) -> str | None:
    """Read the path in an id, to be looked up in the collection and nowhere else; None for an invalid id.

    >>> path_of_id("My9kaWdpdF8wMDAzLnBuZw"), path_of_id("My9kaWdpdF8wMDAzLnBuZx"), path_of_id("é")
    ('3/digit_0003.png', None, None)
    """
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode("utf-8", "surrogatepass")
    except (binascii.Error, ValueError):
        return None
    return found if id_of(found) == text else None  # an image has one id


K_MOST = 1000
EXAMPLE = "3/digit_0003.png"
ID = id_of(EXAMPLE)
TOKEN_HINT = "The token that the server was started with; without one, none is needed."  # noqa: S105


class HitBody(BaseModel):
    """An image that was found."""

    rank: int = Field(description="1 is the most similar.", ge=1)
    id: str = Field(description="Its name in addresses here.")
    path: str = Field(description="Its path in the collection.")
    label: str = Field(description='Its class; "" if it has none.')
    cosine: float = Field(description="Similarity, -1 to 1, of refined vectors.", ge=-1, le=1)
    visual: float | None = Field(default=None, description="That of the pictures, where words took part.", ge=-1, le=1)
    text: float | None = Field(default=None, description="That of the words, where they took part.", ge=0, le=1)


class HitsBody(BaseModel):
    """What was found, best first."""

    hits: list[HitBody]


class ItemBody(BaseModel):
    """An image of the collection."""

    id: str = Field(description="Its name in addresses here.")
    path: str = Field(description="Its path in the collection.")
    label: str = Field(description='Its class; "" if it has none.')


class HealthBody(BaseModel):
    """The process lives."""

    status: str


class ReadyBody(BaseModel):
    """Index open, network loaded."""

    status: str
    images: int = Field(description="Images in the collection.", ge=0)


ItemId = Annotated[str, Path(description="As a search shows it.", max_length=4000, examples=[ID])]
K = Annotated[int, Query(description="How many; where there are fewer, all of them.", ge=1, le=K_MOST)]
Least = Annotated[float, Query(description="The least cosine of a hit.", ge=-1, le=1, allow_inf_nan=False)]
Label = Annotated[str | None, Query(description="Find images of this class only.", max_length=200)]
TEXT_HELP = "Words to compare with the images' tags, too; needs an index with tags, or a network that reads texts."
Text = Annotated[str | None, Query(description=TEXT_HELP, min_length=1, max_length=1000)]
WEIGHT_HELP = "Weight of words beside a picture: 0 the picture alone, 1 the words alone; by default the index's."
TextWeight = Annotated[float | None, Query(description=WEIGHT_HELP, ge=0, le=1, allow_inf_nan=False)]
NewLabel = Annotated[str, Query(description="Its class; none by default.", max_length=200)]
NAME_TEXT = "Its file name in LABEL/NAME; by default made from the content. Only the last part of a path is used."
Name = Annotated[str | None, Query(description=NAME_TEXT, min_length=1, max_length=200)]
Replace = Annotated[bool, Query(description="Take the place of an image of that name.")]
Side = Annotated[int, Query(description="The most pixels a side.", ge=16, le=1024)]

FILE = {"file": {"type": "string", "format": "binary", "description": "The picture."}}
EXAMPLE_HITS = {"hits": [{"rank": 1, "id": ID, "path": EXAMPLE, "label": "3", "cosine": 0.9731}]}
EXAMPLE_ITEM = {"id": id_of("cat/tom.png"), "path": "cat/tom.png", "label": "cat"}
FOUND = (problems.INVALID, problems.UNKNOWN_ITEM, problems.UNAVAILABLE)
IMAGE: dict[int | str, Any] = {
    200: {
        "description": "The picture, encoded anew, without metadata.",
        "headers": {"ETag": {"description": "Changes with the picture.", "schema": {"type": "string"}}},
        "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in ("image/png", "image/jpeg")},
    },
    304: {"description": "The client has it already (If-None-Match)."},
}


class NewItem(TypedDict):
    """Parameters of an addition."""

    label: NewLabel
    name: Name
    replace: Replace


NEW = TypeAdapter(NewItem)


def body(fields: dict[str, Any], *, required: bool = True, **more: Any) -> dict[str, Any]:
    """Describe, for OpenAPI, a body that is a picture, or a form with one."""
    picture = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "schema": {
            "type": "object",
            "properties": {**FILE, **fields},
            "required": ["file"],
            "additionalProperties": False,
        }
    }
    types = {"multipart/form-data": form, "image/*": picture, "application/octet-stream": picture}
    return {"requestBody": {"required": required, "content": types}, **more}


def curl(command: str) -> dict[str, Any]:
    """Add an example, which docs/api.md shows and a test runs."""
    return {"x-codeSamples": [{"lang": "Shell", "source": command}]}


def answers(model_example: Any, status: int = 200, headers: dict[str, str] | None = None) -> dict[int | str, Any]:
    """Describe, for OpenAPI, an answer that is JSON."""
    described = {name: {"description": text, "schema": {"type": "string"}} for name, text in (headers or {}).items()}
    answer: dict[str, Any] = {"content": {"application/json": {"example": model_example}}}
    return {status: answer | ({"headers": described} if described else {})}


def openapi(app: FastAPI) -> dict[str, Any]:
    """Make the OpenAPI document, once."""
    if not app.openapi_schema:
        content = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        parts = content.setdefault("components", {})
        schemas = parts.setdefault("schemas", {})
        schemas["Problem"] = problems.ProblemBody.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "description": TOKEN_HINT}}
        content["security"] = [{"token": []}, {}]
        app.openapi_schema = content
    return app.openapi_schema


class Direct(APIRoute):
    """A route for endpoints that take parameters of path and query, `request`, and nothing else.

    One compiled model reads them; FastAPI's own route works out every parameter of every request anew. An answer of
    /items/{id}/similar takes 1.04 ms of a core instead of 1.33; at 1, 8 and 64 connections there are 1.10, 1.02 and
    1.10 times as many a second (benchmarks/serving.py: medians of 5 runs of 4 s on two busy cores).
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Make the handler of the endpoint; see APIRoute."""
        endpoint = self.endpoint
        hints = get_type_hints(endpoint, include_extras=True)
        given = signature(endpoint).parameters
        fields: dict[str, Any] = {
            name: (hints[name], ... if each.default is Parameter.empty else each.default)
            for name, each in given.items()
            if name != "request"
        }
        model = create_model("Parameters", **fields)
        with_request = "request" in given
        known = sorted(fields.keys() - self.param_convertors.keys())  # names of query parameters

        async def handle(request: Request) -> Response:
            if fields:  # who only asks whether the server lives may add what it likes
                check_known(request.query_params, known)
            try:
                values = vars(model.model_validate({**request.query_params, **request.path_params}))
            except ValidationError as error:
                raise Problem(problems.INVALID, sentence(error)) from None
            answer: Response = await (endpoint(request=request, **values) if with_request else endpoint(**values))
            return answer

        return handle


def check_known(given: Iterable[str], known: list[str], kind: str = "parameter") -> None:
    """Raise Problem for an unknown name, which would otherwise be ignored silently."""
    for name in given:
        if name not in known:
            hint = closest(name, known) if known else "none is known here"
            raise Problem(problems.INVALID, f"unknown {kind} {name!r}; {hint}")


def sentence(error: ValidationError) -> str:
    """Say in a sentence what is wrong with parameters."""
    return "; ".join(f"{each['loc'][-1]}: {each['msg'][:1].lower()}{each['msg'][1:]}" for each in error.errors())
