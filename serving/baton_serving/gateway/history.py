"""Requests that were served lately: for `explain`, and line by line for the access log."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import BinaryIO

import orjson

from baton_serving.gateway.record import Record

KEPT = 10_000  # requests
FLUSH_SECONDS = 0.5


class History:
    """The records of the last `KEPT` requests by id; of several with one id the latest."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._records: OrderedDict[str, Record] = OrderedDict()

    def add(self, record: Record) -> None:
        """From its beginning on; the record goes on changing."""
        records = self._records
        records[record.request_id] = record
        if len(records) > self._kept:
            records.popitem(last=False)

    def explain(self, request_id: str) -> dict[str, object] | None:
        """All that is known of the request, as JSON values."""
        found = self._records.get(request_id)
        return None if found is None else found.explain()


class AccessLog:
    """Writes a JSON line per request that has ended, gathered for a moment. Used from one loop."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lines: list[bytes] = []

    def add(self, record: Record) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        self._lines.append(orjson.dumps(record.log_line(), option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._out.write(b"".join(lines))
            self._out.flush()
