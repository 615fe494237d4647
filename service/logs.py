"""The log: one format for our loggers and the server's, text for people or JSON for a collector.

A request is one line. As JSON it has what the request cost as fields of its own; as text it is short.
"""

from __future__ import annotations

import logging
from typing import Any, Literal
from urllib.parse import quote

from service.account import Account
from service.request_context import Ended

access_logger = logging.getLogger("skipvit.access")

_TEXT: dict[str, Any] = {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}
_JSON: dict[str, Any] = {
    "()": "pythonjsonlogger.json.JsonFormatter",
    "fmt": "%(levelname)s %(name)s %(message)s",
    "rename_fields": {"levelname": "level", "name": "logger"},
    "timestamp": "time",
    "reserved_attrs": [*logging.makeLogRecord({}).__dict__, "color_message", "message", "asctime"],
}


def logging_config(log_format: Literal["text", "json"]) -> dict[str, Any]:
    """The configuration of `logging`: everything goes to stderr in one format."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": _JSON if log_format == "json" else _TEXT},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {"uvicorn": {"level": "INFO"}, "skipvit": {"level": "INFO"}},
    }


def log_request(ended: Ended, state: dict[str, Any]) -> None:
    """Write a request's line; `state` holds what routes left there."""
    path = quote(ended.path)  # unquoted it may hold a newline, and so forge a line of the log
    duration_ms = ended.duration_s * 1e3
    fields = {
        "request_id": ended.request_id,
        "method": ended.method,
        "path": path,
        "status": ended.status,
        "duration_ms": round(duration_ms, 3),
    }
    fields.update({name: state[name] for name in ("model", "outcome", "api_key", "trace_id") if name in state})
    if isinstance(account := state.get("account"), Account):
        fields.update(account.fields())
    access_logger.info(
        "%s %s %s %d %.1fms", ended.request_id, ended.method, path, ended.status, duration_ms, extra=fields
    )
