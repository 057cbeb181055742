"""The application: its addresses, with their parameters and answers. The work behind an answer is in service.py."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.telemetry import TelemetryConfig
from pydantic import ValidationError
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from lookalike.api import problems
from lookalike.api.middleware import Edge, Gate
from lookalike.api.problems import Problem, documented
from lookalike.api.schema import (
    EXAMPLE_HITS,
    EXAMPLE_ITEM,
    FOUND,
    ID,
    IMAGE,
    NEW,
    Direct,
    HealthBody,
    HitsBody,
    ItemBody,
    ItemId,
    K,
    Label,
    Least,
    Name,
    NewItem,
    NewLabel,
    ReadyBody,
    Replace,
    Side,
    Text,
    TextWeight,
    answers,
    body,
    check_known,
    curl,
    id_of,
    openapi,
    sentence,
)
from lookalike.api.service import Item, Service
from lookalike.api.upload import declared_length, has_body, receive
from lookalike.collection.hits import Hit
from lookalike.collection.query import Query

# FastAPI's own reports, which an environment variable could send elsewhere; asking whether costs time too.
SILENT: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
JSON = json.JSONEncoder(separators=(",", ":"))


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Make a JSON answer that no cache keeps."""
    return Response(JSON.encode(content), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


def as_hits(hits: list[Hit]) -> Response:
    """Make the answer of a search."""
    return as_json({"hits": [{"rank": hit.rank, "id": id_of(hit.path), **hit.fields()} for hit in hits]})


def as_item(item: Item) -> dict[str, str]:
    """Describe an image of the collection, with its id."""
    return {"id": id_of(item.path), **asdict(item)}


def create(service: Service, *, log: bool = True) -> tuple[FastAPI, ASGIApp]:
    """Make the application: FastAPI's, and the same inside its middleware, which is served."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="Lookalike",
        version="1",
        description="Find the images of a collection that look alike.",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        redirect_slashes=False,
        telemetry=SILENT,
    )
    app.router.route_class = Direct
    problems.answer_errors(app)
    add_searches(app, service)
    add_items(app, service)
    add_state(app, service)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]
    settings = service.settings
    served: ASGIApp = Gate(app, settings)
    if settings.origins:
        served = CORSMiddleware(
            served,
            settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Location", "Retry-After", "ETag"],
        )
    return app, Edge(served, service.metrics, log=log)


def add_searches(app: FastAPI, service: Service) -> None:
    """Add the addresses that search."""

    @app.post(
        "/search",
        summary="Find the images most similar to a picture",
        response_model=HitsBody,
        tags=["search"],
        responses={**answers(EXAMPLE_HITS), **documented(problems.INVALID, problems.UNAVAILABLE, *problems.PICTURE)},
        openapi_extra=body(
            {}, required=False, **curl('curl -F file=@data/raw/3/digit_0003.png "http://127.0.0.1:8000/search?k=3"')
        ),
    )
    async def search(
        request: Request,
        k: K = 10,
        min_similarity: Least = -1.0,
        label: Label = None,
        text: Text = None,
        text_weight: TextWeight = None,
    ) -> Response:
        """The body is the picture, or a form with the field `file`.

        JPEG, PNG, WebP, BMP, GIF or TIFF by content, whatever its name or declared type, with one frame. With `text`
        the picture may be left out: words alone need no network, and do not wait for requests that do.
        """
        query = Query(k, min_similarity, label, text, text_weight)
        if text is not None and not has_body(request):
            return as_hits(await service.search(None, query))
        with service.admission(declared_length(request)) as place:
            upload = await receive(request, service.settings, place)
            check_known(upload.fields, [], "field of the form")
            return as_hits(await service.search(upload.content, query))

    @app.get(
        "/items/{id}/similar",
        summary="Find the images most similar to one of the collection",
        tags=["search"],
        response_model=HitsBody,
        responses={**answers(EXAMPLE_HITS), **documented(*FOUND)},
        openapi_extra=curl(f'curl "http://127.0.0.1:8000/items/{ID}/similar?k=3&min_similarity=0.5&label=3"'),
    )
    async def similar(
        id: ItemId,
        k: K = 10,
        min_similarity: Least = -1.0,
        label: Label = None,
        text: Text = None,
        text_weight: TextWeight = None,
    ) -> Response:
        """The image itself is left out. Needs no network, and does not wait for requests that do.

        Where the index has tags, the image's own tags count too, or, instead of them, the words of `text`.
        """
        return as_hits(await service.similar(id, Query(k, min_similarity, label, text, text_weight)))


def add_items(app: FastAPI, service: Service) -> None:
    """Add the addresses of images, and those that change the collection."""

    @app.post(
        "/items",
        summary="Add a picture",
        status_code=201,
        response_model=ItemBody,
        tags=["items"],
        responses={
            **answers(EXAMPLE_ITEM, 201, {"Location": "Its address."}),
            200: {
                "model": ItemBody,
                "description": "It took the place of another.",
                "content": {"application/json": {"example": EXAMPLE_ITEM}},
            },
            **documented(problems.INVALID, problems.EXISTS, problems.UNAVAILABLE, *problems.PICTURE),
        },
        openapi_extra=body(
            {
                name: {key: value for key, value in schema.items() if key != "title"}
                for name, schema in NEW.json_schema()["properties"].items()
            },
            **curl("curl -F file=@data/raw/3/digit_0003.png -F label=cat -F name=tom.png http://127.0.0.1:8000/items"),
        ),
    )
    async def add(request: Request, label: NewLabel = "", name: Name = None, replace: Replace = False) -> Response:
        """It is on disk and searchable when the answer comes. Label, name and replace may also be fields of the form.

        The file name in the form is not read.
        """
        with service.admission(declared_length(request)) as place:
            upload = await receive(request, service.settings, place)
            new = merged({"label": label, "name": name, "replace": replace}, upload.fields)
            item, replaced = await service.add(upload.content, new["label"], new["name"], replace=new["replace"])
        location = {"Location": f"/items/{id_of(item.path)}"}
        return as_json(as_item(item), 200) if replaced else as_json(as_item(item), 201, location)

    @app.get(
        "/items/{id}",
        summary="What an image is called",
        response_model=ItemBody,
        tags=["items"],
        responses={**answers(EXAMPLE_ITEM), **documented(*FOUND)},
        openapi_extra=curl(f"curl http://127.0.0.1:8000/items/{ID}"),
    )
    async def item(id: ItemId) -> Response:
        """Path and class."""
        return as_json(as_item(await service.item(id)))

    @app.delete(
        "/items/{id}",
        summary="Take an image out",
        status_code=204,
        response_class=Response,
        tags=["items"],
        responses={204: {"description": "It is no longer found."}, **documented(*FOUND)},
        openapi_extra=curl(f"curl -X DELETE http://127.0.0.1:8000/items/{id_of('cat/tom.png')}"),
    )
    async def remove(id: ItemId) -> Response:
        """The removal is on disk when the answer comes; the file itself stays where it is."""
        await service.remove(id)
        return Response(status_code=204, headers={"Cache-Control": "no-store"})

    shown = documented(*FOUND, problems.NO_ORIGINAL, problems.TOO_SLOW, problems.QUEUE_FULL)

    @app.get(
        "/items/{id}/image",
        summary="The image itself",
        response_class=Response,
        tags=["items"],
        responses={**IMAGE, **shown},
        openapi_extra=curl(f"curl -o image.png http://127.0.0.1:8000/items/{ID}/image"),
    )
    async def image(request: Request, id: ItemId) -> Response:
        """Upright, in full size, encoded anew, without the file's metadata."""
        return await picture(request, id, None)

    @app.get(
        "/items/{id}/thumbnail",
        summary="The image, small",
        response_class=Response,
        tags=["items"],
        responses={**IMAGE, **shown},
        openapi_extra=curl(f'curl -o small.png "http://127.0.0.1:8000/items/{ID}/thumbnail?size=128"'),
    )
    async def thumbnail(request: Request, id: ItemId, size: Side = 256) -> Response:
        """Never larger than the image."""
        return await picture(request, id, size)

    async def picture(request: Request, id: str, side: int | None) -> Response:
        found = await service.picture(id, side, request.headers.get("if-none-match", ""))
        if found is None:
            return Response(status_code=304, headers={"Cache-Control": "private, no-cache"})
        headers = {"Cache-Control": "private, no-cache", "ETag": found.tag}
        return Response(found.content, 200, headers, found.media_type)


def merged(query: NewItem, form: dict[str, str]) -> NewItem:
    """Merge parameters: the form's values take the place of the address's."""
    check_known(form, sorted(NewItem.__annotations__), "field of the form")
    try:
        return NEW.validate_python({**query, **form})
    except ValidationError as error:
        raise Problem(problems.INVALID, sentence(error)) from None


def add_state(app: FastAPI, service: Service) -> None:
    """Add the addresses for operators."""

    @app.get(
        "/health",
        summary="Does the process live?",
        response_model=HealthBody,
        tags=["operation"],
        responses={**answers({"status": "alive"}), **documented(token=False)},
        openapi_extra={"security": [], **curl("curl http://127.0.0.1:8000/health")},
    )
    async def health() -> Response:
        """Needs no token."""
        return as_json({"status": "alive"})

    @app.get(
        "/ready",
        summary="Can it answer?",
        response_model=ReadyBody,
        tags=["operation"],
        responses={
            **answers({"status": "ready", "images": 1797}),
            **documented(problems.NOT_READY, problems.UNAVAILABLE),
        },
        openapi_extra=curl("curl http://127.0.0.1:8000/ready"),
    )
    async def ready() -> Response:
        """Ready once the index is open and the network is loaded."""
        images = await service.count()
        if not service.loaded:
            raise problems.retry(problems.NOT_READY, "the network is being loaded")
        return as_json({"status": "ready", "images": images})

    @app.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        tags=["operation"],
        responses={
            200: {
                "description": "Prometheus's text format.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **documented(problems.UNAVAILABLE),
        },
        openapi_extra=curl("curl http://127.0.0.1:8000/metrics"),
    )
    async def metrics() -> Response:
        """Answers and their times by address, sizes and times of batches, requests under way, memory."""
        await service.count()
        return Response(service.metrics.text(), 200, {"Cache-Control": "no-store"}, "text/plain; version=0.0.4")
