"""The OpenAPI document, put right where the framework can't know: the media type of problems, the need of keys."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from fastapi import FastAPI

from service.error_handlers import MEDIA_TYPE
from service.gate import API_KEY, is_open
from service.schemas import Problem

_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_KEYS = {
    "key": {"type": "apiKey", "in": "header", "name": API_KEY},
    "bearer": {"type": "http", "scheme": "bearer"},
}


def release() -> str:
    """The service's version; `unknown` in a checkout that isn't installed."""
    try:
        return importlib.metadata.version("skipvit")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def describe(app: FastAPI, *, locked: bool) -> None:
    """Have the application's document tell of its release, of problems and, if it is `locked`, of API keys."""
    app.version = release()
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = build()
        components = document.setdefault("components", {})
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        components.setdefault("schemas", {}).setdefault("Problem", schema)
        for path, item in document["paths"].items():
            for operation in item.values():
                for response in operation["responses"].values():
                    _retype(response.get("content", {}))
                if locked and not is_open(path):
                    _lock(path, operation)
        if locked:
            components["securitySchemes"] = _KEYS
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _retype(content: dict[str, Any]) -> None:
    """The framework says that each model is sent as application/json."""
    if content.get("application/json", {}).get("schema") == _PROBLEM:
        content[MEDIA_TYPE] = content.pop("application/json")


def _lock(path: str, operation: dict[str, Any]) -> None:
    operation["security"] = [{name: []} for name in _KEYS]
    if not path.startswith("/v2"):  # there all 4XX are described at once
        refused = {"description": "No API key, or one that isn't known", "content": {MEDIA_TYPE: {"schema": _PROBLEM}}}
        operation["responses"].setdefault("401", refused)
