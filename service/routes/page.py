"""`GET /`: the web page, and the files it is made of. They are read once, when the application is built.

Nothing that the page loads comes from another origin, and its headers forbid that it could: no inline script, no frame,
no connection to anywhere but this service.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent.parent / "static"
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Asked for anew each time, answered 304 if unchanged: an update of the service is an update of its page.
_CACHING = {"Cache-Control": "no-cache"}
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


class _Files(StaticFiles):
    """Starlette's static files (ETag, 304, no way out of the folder) with our headers, of the known types only."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update({**SECURITY_HEADERS, **_CACHING})
        kind = _TYPES.get(Path(path).suffix)
        if kind and response.status_code == 200:  # the system's own table of types may call a script plain text
            charset = "" if kind == "image/png" else "; charset=utf-8"
            response.headers["Content-Type"] = kind + charset
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page at `/` and its files under `/static`."""
    files = _Files(directory=STATIC)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        """The web page."""
        return await files.get_response("index.html", request.scope)

    app.mount("/static", files, name="static")
