"""What is remembered of each request: for `explain`, the access log and the metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from baton_serving.gateway.fleet import Endpoint
from baton_serving.gateway.routing import Decision
from baton_serving.gateway.snapshot import Choice

_STAGES = ("queue", "prefill", "transfer", "decode")


class Record(msgspec.Struct, eq=False, gc=False):
    """One request. Times are those of the monotonic clock; `received` is unix time.

    `stages` are numbers of attempts, and what their decode workers said of how long each stage took.
    """

    number: int
    request_id: str
    path: str
    started: float
    model: str = ""
    tenant: str = ""
    trace: str = ""
    stream: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    tokens: int = 0  # of prompt and answer, counted where a limit depends on it
    first_byte: float = 0.0
    ended: float = 0.0
    status: int = 0
    outcome: str = ""
    error: str = ""
    moved: int = 0
    received: float = msgspec.field(default_factory=time.time)
    attempts: tuple[tuple[float, Decision], ...] = ()
    stages: tuple[tuple[int, str], ...] = ()
    notes: tuple[tuple[float, str, str], ...] = ()  # when, what, who or why

    def explain(self) -> dict[str, object]:
        """Everything, as JSON values; stage times are seconds since the request arrived."""
        return {
            "request_id": self.request_id,
            "path": self.path,
            "model": self.model,
            "stream": self.stream,
            "received": self.received,
            "outcome": self.outcome or "running",
            "status": self.status,
            "error": self.error,
            "request_bytes": self.bytes_in,
            "response_bytes": self.bytes_out,
            "first_byte_after": self._after(self.first_byte),
            "ended_after": self._after(self.ended),
            "migrations": self.moved,
            "attempts": self._told_attempts(),
            "stages": [{"after": self._after(at), "what": what, "detail": detail} for at, what, detail in self.notes],
        }

    def log_line(self) -> dict[str, object]:
        """The access log's line."""
        line: dict[str, object] = {
            "time": self.received,
            "request_id": self.request_id,
            "path": self.path,
            "model": self.model,
            "status": self.status,
            "outcome": self.outcome,
            "stream": self.stream,
            "request_bytes": self.bytes_in,
            "response_bytes": self.bytes_out,
            "seconds": round(self.ended - self.started, 6),
            "first_byte_after": self._after(self.first_byte),
            "attempts": len(self.attempts),
            "migrations": self.moved,
        }
        if self.attempts:
            line["route"] = str(self.attempts[-1][1].route)
        if self.tenant:
            line["tenant"] = self.tenant
        if self.trace:
            line["trace"] = self.trace
        if self.error:
            line["error"] = self.error
        return line

    def _after(self, at: float) -> float | None:
        return round(at - self.started, 6) if at else None

    def _told_attempts(self) -> list[dict[str, object]]:
        told = [self._attempt(at, decision) for at, decision in self.attempts]
        for number, stages in self.stages:
            told[number - 1] |= _stages(stages)
        return told

    def _attempt(self, at: float, decision: Decision) -> dict[str, object]:
        route = decision.route
        told: dict[str, object] = {"after": self._after(at), "decode": _leg(route.decode, decision.decode)}
        if route.prefill is not None and decision.prefill is not None:
            told["prefill"] = _leg(route.prefill, decision.prefill)
        told["weights"] = route.decode.weight_digest
        return told


def _stages(text: str) -> dict[str, object]:
    """A worker's `NAME=SECONDS; …; transport=NAME; pages=N; bytes=N`; what does not look so is left out."""
    given = dict(part.partition("=")[::2] for part in text.split("; "))
    told: dict[str, object] = {"stages": {name: float(given[name]) for name in _STAGES if _is_number(given.get(name))}}
    if "transport" in given:
        figures = {name: int(given[name]) for name in ("pages", "bytes") if given.get(name, "").isdecimal()}
        told["transfer"] = {"transport": given["transport"], **figures}
    return told


def _is_number(text: str | None) -> bool:
    return text is not None and text.replace(".", "", 1).isdecimal()


def _leg(chosen: Endpoint, considered: tuple[Sequence[Endpoint], Choice]) -> dict[str, object]:
    candidates, choice = considered
    told: dict[str, object] = {
        "worker": chosen.id,
        "incarnation": chosen.incarnation,
        "url": chosen.worker.http_url,
        "candidates": len(candidates),
    }
    if choice.scores:
        scored = zip(choice.considered, choice.scores, strict=True)
        told["scores"] = {candidates[index].id: score for index, score in scored}
        told["believed_cached_tokens"] = choice.cached
    return told
