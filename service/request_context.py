"""The outermost layer of a request: its id, its start, its end. Pure ASGI, so that a client's leaving stays visible.

(Starlette's `BaseHTTPMiddleware` would hide `http.disconnect` from the route.) It knows no route and no metric: the
request's state, in which routes and error handlers leave `model` and `outcome`, goes to a callback at the end.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.error_handlers import problem

access_logger = logging.getLogger("skipvit.access")
logger = logging.getLogger("skipvit")

REQUEST_ID = "X-Request-Id"
_GOOD_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # fit for a log line and a header


class RequestContext:
    """ASGI middleware that gives each request `request_id` and `started_s` in its state and one line in the log."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        on_end: Callable[[dict[str, Any], float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_end(state, duration_s)` is called once for each request."""
        self._app = app
        self._on_end = on_end
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        sent_id = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = sent_id if _GOOD_ID.fullmatch(sent_id) else uuid.uuid4().hex
        started_s = self._clock()
        state.update(request_id=request_id, started_s=started_s)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
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
            duration_s = self._clock() - started_s
            self._on_end(state, duration_s)
            path = quote(scope["path"])  # unquoted it may hold a newline, and so forge a line of the log
            access_logger.info("%s %s %s %d %.1fms", request_id, scope["method"], path, status, duration_s * 1e3)
