"""A route that classifies, and remembers what query strings stand for: callers send the same few again and again.

FastAPI reads, converts and checks the parameters of every request anew. Here that is done once for each query string
and deadline, and the endpoint is called with what came of it. What is wrong with a request, and the document of the
API, stay FastAPI's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from functools import wraps
from inspect import signature
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.errors import BadParameter
from service.exchange import count_request
from service.serving import Serving, get_serving

_DEADLINE = "X-Request-Timeout-Ms"
_MAX_REMEMBERED = 1024
_MAX_QUERY_BYTES = 256

Key = tuple[bytes, str | None]


class ClassifyingRoute(APIRoute):
    """For endpoints that take `request`, `serving`, and what comes of the query and the deadline's header alone.

    Parameters are shared between requests, so they must not change.
    """

    def __init__(self, path: str, endpoint: Callable[..., Coroutine[Any, Any, Response]], **options: Any) -> None:
        self._endpoint = endpoint
        self._remembered: dict[Key, dict[str, Any]] = {}

        @wraps(endpoint)
        async def remembering(request: Request, serving: Serving, **parameters: Any) -> Response:
            _check_once_each(request)
            self._remember(_key(request), parameters)
            return await endpoint(request=request, serving=serving, **parameters)

        # Older FastAPI looks for the names of annotations where this function is, not where the endpoint is.
        remembering.__signature__ = signature(endpoint, eval_str=True)  # type: ignore[attr-defined]
        super().__init__(path, remembering, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request: the endpoint where its parameters are known, else FastAPI's handler before it."""
        parse = super().get_route_handler()

        async def handle(request: Request) -> Response:
            parameters = self._remembered.get(_key(request))
            if parameters is None:
                return await parse(request)
            serving = await get_serving(request)
            await count_request(request, serving)
            return await self._endpoint(request=request, serving=serving, **parameters)

        return handle

    def _remember(self, key: Key, parameters: dict[str, Any]) -> None:
        if len(key[0]) > _MAX_QUERY_BYTES:
            return
        if len(self._remembered) == _MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]  # the oldest
        self._remembered[key] = parameters


def _check_once_each(request: Request) -> None:
    """Raise BadParameter for one that is given several times, of which FastAPI would take the last one in silence."""
    times = Counter(name for name, _ in request.query_params.multi_items())
    for name, given in times.items():
        if given > 1:
            raise BadParameter(f"{name} is given {given} times: once is enough")


def _key(request: Request) -> Key:
    return request.scope["query_string"], request.headers.get(_DEADLINE)
