"""Errors become `application/problem+json` (RFC 9457). One table says how; everything that goes wrong passes here.

Under `/v2` they have the Open Inference Protocol's body instead, `{"error": "..."}`; status and headers are the same.
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service import errors
from service.schemas import Parameter, Problem

MEDIA_TYPE = "application/problem+json"
PROTOCOL_PATH = "/v2"


class Row(NamedTuple):
    """How an error looks from outside."""

    status: int
    title: str
    outcome: str  # the label in skipvit_requests_total


STATUS: dict[type[errors.ServiceError], Row] = {
    errors.ServiceError: Row(500, "Internal error", "error"),
    errors.SettingsError: Row(503, "Settings unusable", "error"),
    errors.BundleError: Row(503, "Model unavailable", "error"),
    errors.UnknownModel: Row(404, "Unknown model", "invalid"),
    errors.NotAllowed: Row(403, "Not allowed", "invalid"),
    errors.BadRequest: Row(400, "Malformed request", "invalid"),
    errors.BadParameter: Row(422, "Bad parameter", "invalid"),
    errors.BadImage: Row(422, "Image can't be decoded", "invalid"),
    errors.UnsupportedImageType: Row(415, "Unsupported image type", "invalid"),
    errors.TooLarge: Row(413, "Too large", "invalid"),
    errors.Overloaded: Row(429, "Overloaded", "overloaded"),
    errors.NotReady: Row(503, "Not ready", "error"),
    errors.DeadlinePassed: Row(504, "Deadline passed", "timeout"),
    errors.InferenceFailed: Row(500, "Inference failed", "error"),
    errors.Unauthorized: Row(401, "Unauthorized", "invalid"),
    errors.HeadersTooLarge: Row(431, "Headers too large", "invalid"),
}


def problem(
    path: str, status: int, title: str, detail: str, request_id: str, *, parameters: list[Parameter] | None = None
) -> Response:
    """What went wrong as a response to a request for `path`: a problem document, whose type is made from the title."""
    if path == PROTOCOL_PATH or path.startswith(f"{PROTOCOL_PATH}/"):
        return Response(json.dumps({"error": detail}), status, media_type="application/json")
    slug = "".join(c if c.isalnum() else "-" for c in title.lower().replace("'", ""))
    document = Problem(
        type=f"urn:skipvit:problem:{slug}",
        title=title,
        status=status,
        detail=detail,
        request_id=request_id,
        parameters=parameters,
    )
    return Response(document.model_dump_json(exclude_none=True), status, media_type=MEDIA_TYPE)


# What the framework's own refusals leave unsaid, and most who meet them want to know.
_MENDS: dict[int, str] = {
    HTTPStatus.NOT_FOUND: "images go by POST to /v1/classify, and /docs lists every path",
    HTTPStatus.METHOD_NOT_ALLOWED: "it takes {allowed}; /docs says what each path takes",
}


def add_error_handlers(app: FastAPI) -> None:
    """Give every error of the application its problem document."""
    app.add_exception_handler(errors.ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)


def _request_id(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))


def refusal(path: str, error: errors.ServiceError, request_id: str) -> Response:
    """An error of the tree as a response to a request for `path`."""
    row = STATUS.get(type(error), STATUS[errors.ServiceError])
    response = problem(path, row.status, row.title, str(error), request_id)
    if isinstance(error, errors.Overloaded):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, errors.NotReady):
        response.headers["Retry-After"] = "1"
    elif isinstance(error, errors.Unauthorized):
        response.headers["WWW-Authenticate"] = 'Bearer realm="skipvit"'
    return response


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ServiceError), "registered for ServiceError only. This is a bug."
    request.state.outcome = STATUS.get(type(error), STATUS[errors.ServiceError]).outcome
    return refusal(request.url.path, error, _request_id(request))


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for RequestValidationError only. This is a bug."
    request.state.outcome = "invalid"
    parameters = []
    for item in error.errors():
        where, *path = (str(part) for part in item["loc"])
        if path:
            parameters.append(Parameter(name=".".join(path), message=f"{item['msg']} (got {_shown(item['input'])})"))
        else:  # about the query as a whole
            parameters.append(Parameter(name=where, message=item["msg"]))
    detail = "; ".join(f"{parameter.name}: {parameter.message}" for parameter in parameters)
    row = STATUS[errors.BadParameter]
    return problem(request.url.path, row.status, row.title, detail, _request_id(request), parameters=parameters)


def _shown(value: object) -> str:
    return repr(str(value)[:100])


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: no such path, no such method."""
    assert isinstance(error, HTTPException), "registered for HTTPException only. This is a bug."
    request.state.outcome = "invalid"
    title = HTTPStatus(error.status_code).phrase
    detail = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code in _MENDS:
        detail += f"; {_MENDS[error.status_code]}".format(allowed=(error.headers or {}).get("Allow", "another method"))
    response = problem(request.url.path, error.status_code, title, detail, _request_id(request))
    response.headers.update(error.headers or {})
    return response
