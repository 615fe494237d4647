"""In front of every route: a header within its limit, and a known API key where one is asked for. Pure ASGI.

Probes, the web page and the API's description are open to all: they tell nothing that a caller without a key may not
know. `/metrics` is not. A refused request's body is not read.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api_keys import UNKNOWN, ApiKeys
from service.error_handlers import refusal
from service.errors import HeadersTooLarge, ServiceError, Unauthorized

API_KEY = "X-API-Key"
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
OPEN_FOLDERS = ("/static/", "/static-offline-docs/", "/v2/health/")


class Gate:
    """ASGI middleware that lets a request in or answers it; leaves the key's name in its state as `api_key`."""

    def __init__(self, app: ASGIApp, *, max_header_bytes: int, api_keys: ApiKeys | None) -> None:
        self._app = app
        self._max_header_bytes = max_header_bytes
        self._api_keys = api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ServiceError as error:
            await refusal(scope["path"], error, scope["state"].get("request_id", ""))(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        received = sum(len(name) + len(value) for name, value in scope["headers"])
        if received > self._max_header_bytes:  # the parser holds this limit only where a header comes in pieces
            raise HeadersTooLarge(f"the header has {received} bytes; the limit is {self._max_header_bytes}")
        if self._api_keys is None or is_open(scope["path"]):
            return
        shown = _shown_key(Headers(scope=scope))
        name = self._api_keys.owner(shown)
        scope["state"]["api_key"] = name or UNKNOWN
        if name is None:
            what = "the API key isn't known" if shown else "an API key is needed"
            raise Unauthorized(f"{what}, as the header {API_KEY} or Authorization: Bearer")


def is_open(path: str) -> bool:
    """Whether a path needs no API key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def _shown_key(headers: Headers) -> str:
    key = headers.get(API_KEY)
    if key is not None:
        return key
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else ""
