"""Routes whose parameters are read by one compiled model.

FastAPI works out every parameter of every request anew, which takes as long as a small search.
"""

from collections.abc import Callable, Coroutine, Iterable
from inspect import Parameter, signature
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError, create_model

from lookalike.api import problems
from lookalike.api.problems import Problem
from lookalike.base.errors import closest


class Direct(APIRoute):
    """A route for endpoints that take parameters of path and query, `request`, and nothing else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's, for such endpoints."""
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
        known = sorted(fields.keys() - self.param_convertors.keys())  # of the query

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
    """Raise Problem for a name that nothing reads; it would else be ignored, and the answer not what was asked for."""
    for name in given:
        if name not in known:
            hint = closest(name, known) if known else "none is known here"
            raise Problem(problems.INVALID, f"unknown {kind} {name!r}; {hint}")


def sentence(error: ValidationError) -> str:
    """What is wrong with parameters, in a sentence."""
    return "; ".join(f"{each['loc'][-1]}: {each['msg'][:1].lower()}{each['msg'][1:]}" for each in error.errors())
