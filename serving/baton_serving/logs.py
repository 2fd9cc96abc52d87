"""Log lines that people can read and machines can parse: `time level process message key=value …`, or JSON.

A module logs with the standard library: `log = logging.getLogger(__name__)`. Figures go beside the message, not into
it: `log.info("request ended", extra=fields(tokens=5))`. The id of the request being handled is added by itself to
every line that is logged within `request_scope`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

FORMAT_VARIABLE = "BATON_LOG_FORMAT"  # "json" or "text": how a deployment wants its lines

_PACKAGES = ("baton_serving", "baton_bootstrap", "baton_operator", "baton_kernels")
_SERVERS = ("uvicorn", "uvicorn.access", "uvicorn.error", "aiohttp.access", "httpx")
_request_id: ContextVar[str] = ContextVar("request_id", default="")


def configure(process: str, level: str = "info", http_level: str = "warning", stream: TextIO | None = None) -> None:
    """Send this process's log lines to `stream` (stderr), each naming `process`. Calling again replaces the set-up.

    `level` is the least level of Baton's own lines, `http_level` that of the HTTP servers' lines; other libraries are
    heard from "warning" on. The form of the lines is read from the environment variable `BATON_LOG_FORMAT`.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Formatter(process, as_json=os.environ.get(FORMAT_VARIABLE, "text") == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in _PACKAGES:
        logging.getLogger(name).setLevel(level.upper())
    for name in _SERVERS:
        server = logging.getLogger(name)
        server.handlers.clear()
        server.propagate = True
        server.setLevel(http_level.upper())


def fields(**values: object) -> dict[str, dict[str, object]]:
    """The `extra=` argument of a logging call that carries `values` as keys of the line."""
    return {"fields": values}


@contextmanager
def request_scope(rid: str) -> Iterator[None]:
    """Within it, in this task or thread, every log line carries `rid`."""
    token = _request_id.set(rid)
    try:
        yield
    finally:
        _request_id.reset(token)


class Formatter(logging.Formatter):
    """One record, one line; a traceback follows in text form and is a key of the object in JSON form."""

    def __init__(self, process: str, as_json: bool) -> None:
        super().__init__()
        self._process = process
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        values = dict(_fields_of(record))
        rid = _request_id.get()
        if rid:
            values.setdefault("rid", rid)
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        moment = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
        if self._as_json:
            head = {"time": moment, "level": record.levelname.lower(), "process": self._process}
            tail = {"traceback": trace} if trace else {}
            return json.dumps(head | {"message": record.getMessage()} | values | tail, default=str)
        pairs = "".join(f" {key}={_quoted(value)}" for key, value in values.items())
        message = record.getMessage().replace("\n", "\\n")
        line = f"{moment} {record.levelname.lower():<7} {self._process} {message}{pairs}"
        return f"{line}\n{trace}" if trace else line


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    values = record.__dict__.get("fields", {})
    return values if isinstance(values, dict) else {}


def _quoted(value: object) -> str:
    """A float with six significant figures; text in quotes where it would blur the line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return json.dumps(text) if not text or any(c in ' "=\n\t' for c in text) else text
