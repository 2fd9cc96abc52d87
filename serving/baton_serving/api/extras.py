"""The fields every generating route shares, applied to a request's choices."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from starlette.requests import Request

from baton_serving.api.protocol.common import CommonFields
from baton_serving.errors import InvalidRequest
from baton_serving.runtime.intake import Intake
from baton_serving.runtime.messages import HandoffTicket
from baton_serving.runtime.requests import Choice, GenerateRequest

T = TypeVar("T")

MAX_CHOICES: Final = 4096  # answers of one request, over all of its prompts
MAX_RID: Final = 256
TIMEOUT_HEADER: Final = "x-request-timeout"


@dataclass(frozen=True)
class Origin:
    """Where a request came in, and what its transport says of it. `timeout` in seconds."""

    route: str
    trace: str = ""
    timeout: float | None = None


def origin_of(request: Request) -> Origin:
    """What path and headers say: W3C trace context or request id, and how long the client will wait."""
    headers = request.headers
    return Origin(
        route=request.url.path,
        trace=headers.get("traceparent") or headers.get("x-request-id") or "",
        timeout=_timeout(headers.get(TIMEOUT_HEADER)),
    )


def generate_request(
    origin: Origin,
    fields: CommonFields,
    intake: Intake,
    prompts: list[list[int]],
    choices: list[Choice],
    *,
    stream: bool,
) -> GenerateRequest:
    """The request to run: `choices` with what `fields` say about hand-off and resumption."""
    if len(choices) > MAX_CHOICES:
        raise InvalidRequest(f"the request asks for {len(choices)} answers, at most {MAX_CHOICES} are given", param="n")
    return GenerateRequest(
        rid=_rid(fields),
        prompts=prompts,
        choices=_resumed(fields, _handed_over(fields, choices), intake),
        stream=stream,
        priority=_priority(fields),
        timeout=origin.timeout,
        trace=origin.trace,
        route=origin.route,
    )


def _rid(fields: CommonFields) -> str:
    if fields.rid is None:
        return uuid.uuid4().hex
    if not 0 < len(fields.rid) <= MAX_RID:
        raise InvalidRequest(f"rid must have 1 to {MAX_RID} characters", param="rid")
    return fields.rid


def _priority(fields: CommonFields) -> int:
    priority = fields.priority or 0
    if abs(priority) >= 1 << 31:
        raise InvalidRequest("priority must fit 32 bits", param="priority")
    return priority


def _timeout(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:  # NaN compares false
        raise InvalidRequest(f"the header {TIMEOUT_HEADER} must be a positive number of seconds", param=TIMEOUT_HEADER)
    return seconds


def _resumed(fields: CommonFields, choices: list[Choice], intake: Intake) -> list[Choice]:
    if fields.baton_resume is None:
        return choices
    lists = fields.baton_resume.output_ids
    name = "baton_resume.output_ids"
    if len(lists) != len(choices):
        raise InvalidRequest(f"{name} has {len(lists)} lists for {len(choices)} choices: send one for each", param=name)
    for choice, output_ids in zip(choices, lists, strict=True):
        intake.check_ids(output_ids, name)
        if len(output_ids) > choice.params.max_new_tokens:
            raise InvalidRequest(f"{name} is longer than the answer may be", param=name)
    return [replace(choice, output_ids=tuple(ids)) for choice, ids in zip(choices, lists, strict=True)]


def _handed_over(fields: CommonFields, choices: list[Choice]) -> list[Choice]:
    tickets = _tickets(fields, len(choices))
    if tickets is None:
        return choices
    return [replace(choice, handoff=ticket) for choice, ticket in zip(choices, tickets, strict=True)]


def _tickets(fields: CommonFields, count: int) -> Sequence[HandoffTicket | None] | None:
    handoff = fields.baton_handoff
    if handoff is not None:
        names = [handoff.transfer_id] if count == 1 else [f"{handoff.transfer_id}.{index}" for index in range(count)]
        return [
            HandoffTicket(transfer_id=name, peer=handoff.peer, attempt=handoff.attempt, receiver=handoff.receiver)
            for name in names
        ]
    if fields.bootstrap_room is None:
        return None
    hosts = _per_choice(fields.bootstrap_host, count, "bootstrap_host")
    ports = _per_choice(fields.bootstrap_port, count, "bootstrap_port")
    rooms = _per_choice(fields.bootstrap_room, count, "bootstrap_room")
    ids = [None if room is None else str(room) for room in rooms]
    if not isinstance(fields.bootstrap_room, list) and count > 1:  # the router sends so for n on /v1/completions
        ids = [f"{fields.bootstrap_room}.{index}" for index in range(count)]
    return [_ticket(host, port, name) for host, port, name in zip(hosts, ports, ids, strict=True)]


def _ticket(host: str | None, port: int | None, name: str | None) -> HandoffTicket | None:
    if name is None:
        return None
    peer = (host or "") if port is None else f"{host or ''}:{port}"
    return HandoffTicket(transfer_id=name, peer=peer)


def _per_choice(value: T | list[T | None] | None, count: int, name: str) -> list[T | None]:
    """One value for each of `count` choices."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise InvalidRequest(f"{name} has {len(value)} values for {count} choices: send one for each", param=name)
    return value
