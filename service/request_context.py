"""The outermost layer of a request: its id, its start, its end. Pure ASGI, so that a client's leaving stays visible.

(Starlette's `BaseHTTPMiddleware` would hide `http.disconnect` from the route.) It knows no route, no metric and no log:
the request's state, in which routes and error handlers leave `model` and `outcome`, goes to a callback at the end.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.error_handlers import problem

logger = logging.getLogger("skipvit")

REQUEST_ID = "X-Request-Id"
_GOOD_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # fit for a log line and a header


class Ended(NamedTuple):
    """A request that has ended, as its outermost layer saw it."""

    request_id: str
    method: str
    path: str
    route: str | None  # the path's template; None if no route has it
    headers: Headers
    status: int  # 0 if the client left before there was one
    duration_s: float

    @property
    def failed(self) -> bool:
        """Whether somebody should look at it: refused, failed or without an answer."""
        return not 100 <= self.status < 400


class RequestContext:
    """ASGI middleware that gives each request `request_id`, `started_s` and `held` in its state.

    What a request enters in `held`, it leaves when it ends.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        on_end: Callable[[dict[str, Any], Ended], None],
        is_leaving: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_end(state, ended)` is called once for each request; `is_leaving`: clients shall connect elsewhere."""
        self._app = app
        self._is_leaving = is_leaving
        self._on_end = on_end
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        asked = Headers(scope=scope)
        sent_id = asked.get(REQUEST_ID, "")
        request_id = sent_id if _GOOD_ID.fullmatch(sent_id) else uuid.uuid4().hex
        started_s = self._clock()
        held = ExitStack()
        state.update(request_id=request_id, started_s=started_s, held=held)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                if self._is_leaving():
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # the last layer before the socket: the client gets a problem, the log the trace
            logger.exception("%s an unexpected error. This is a bug.", request_id)
            state["outcome"] = "error"
            if not status:
                response = problem(
                    scope["path"], 500, "Internal error", "an unexpected error; it was logged", request_id
                )
                await response(scope, receive, send_with_id)
        finally:
            held.close()
            duration_s = self._clock() - started_s
            route = getattr(scope.get("route"), "path", None)
            self._on_end(state, Ended(request_id, scope["method"], scope["path"], route, asked, status, duration_s))
