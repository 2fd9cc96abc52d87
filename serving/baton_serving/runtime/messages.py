"""Messages between a worker's processes: typed, msgpack, one union per socket, no pickle.

API process ──SchedulerInput──▶ scheduler rank 0 ──DetokenizerInput──▶ detokenizer ──TextBatch──▶ API process
     ▲                               │    ▲────────────── StopFound ───────────┘
     └── ControlReply, WorkerState, CacheChanged ──┘
"""

from __future__ import annotations

from typing import Any

import msgspec

from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.events import Failure, Finish, Timings, TokenOutput
from baton_serving.scheduling.request import LogprobOptions

__all__ = [
    "AbortInput",
    "ApiInput",
    "CacheChanged",
    "ControlInput",
    "ControlReply",
    "DetokenizerInput",
    "Failure",
    "Finish",
    "GenerateInput",
    "HandoffTicket",
    "LogprobOptions",
    "SchedulerInput",
    "StopFound",
    "StreamState",
    "TextBatch",
    "TextOutput",
    "Timings",
    "TokenBatch",
    "TokenOutput",
    "WorkerState",
]

PROTOCOL_VERSION = 1


class Message(msgspec.Struct, tag=True, kw_only=True, omit_defaults=True):
    """Base of all messages; the tag is the class name."""


class HandoffTicket(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ties a request's prefill leg and decode leg together.

    `transfer_id` is unique per attempt pair. `peer` is what the request named as its prefill worker (`host:port` or a
    worker id): a look-up key among registered peers, never an address to dial. `receiver` is the key of the decode
    worker, if the request named one: when that worker is gone, nobody will ask for the pages.
    """

    transfer_id: str
    peer: str = ""
    attempt: int = 0
    receiver: str = ""


class GenerateInput(Message):
    """One choice of one request, tokenized and validated. `rid` is unique per choice.

    `output_ids` are tokens of the answer that another worker has already sent: generation goes on after them, and
    penalties, seeds, limits and `completion_tokens` count them. `deadline` is seconds on the monotonic clock or 0.
    `received` is unix time in seconds. `embed` asks for the prompt's embedding.
    """

    rid: str
    input_ids: list[int]
    params: SamplingParams
    output_ids: list[int] = []
    stream: bool = False
    logprobs: LogprobOptions | None = None
    priority: int = 0
    handoff: HandoffTicket | None = None
    received: float = 0.0
    deadline: float = 0.0
    trace: str = ""
    embed: bool = False


class AbortInput(Message):
    """Stop the request `rid` (compared whole), or all when `rid` is empty. `reason` goes into the terminal reply."""

    rid: str
    reason: str = "aborted"


class StopFound(Message):
    """The detokenizer found a stop string: the request is finished after `completion_tokens` tokens."""

    rid: str
    completion_tokens: int


class ControlInput(Message):
    """A control call answered by `ControlReply` with the same `id`. `method` names a handler of the scheduler."""

    id: str
    method: str
    args: dict[str, Any] = {}


class StreamState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the detokenizer must know of a request before its first output.

    `prompt_tail` is the last few prompt tokens: a character may begin there. `output_ids` are those of the
    `GenerateInput`: replayed without being sent again, so that a character or stop string begun in them goes on.
    """

    rid: str
    prompt_tail: list[int]
    params: SamplingParams
    stream: bool
    output_ids: list[int] = []


class TokenBatch(Message):
    """Scheduler → detokenizer, once per step: requests newly begun, then outputs."""

    opened: list[StreamState] = []
    outputs: list[TokenOutput] = []


class TextOutput(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`text` is the new text (stop string trimmed unless asked otherwise); the tokens are those not sent before."""

    rid: str
    text: str
    tokens: TokenOutput


class TextBatch(Message):
    """Detokenizer → API."""

    outputs: list[TextOutput]


class ControlReply(Message):
    """Answer to a `ControlInput`; `error` is set when it failed."""

    id: str
    result: dict[str, Any] = {}
    error: Failure | None = None


class WorkerState(Message):
    """Scheduler → API, a few times a second and whenever something changed: the loop's tick and the pools.

    `tick` counts loop turns and ticks when idle too. `stats` holds gauges and counters for `/metrics`, named in
    `runtime.metrics`. `busy_until` (seconds on the monotonic clock) declares an operation that stops the ticking.
    `links` are bytes a second at which KV pages come from other workers, by worker id.
    """

    tick: int
    stats: dict[str, float]
    busy_until: float = 0.0
    links: dict[str, float] = {}


class CacheChanged(Message):
    """Scheduler → API: blocks of the radix tree, by hash, that left the cache and that entered it since the last one.

    Sent after the step that did it, so that what it says is true of the next one.
    """

    stored: list[int] = []
    removed: list[int] = []


SchedulerInput = GenerateInput | AbortInput | StopFound | ControlInput
DetokenizerInput = TokenBatch
ApiInput = TextBatch | ControlReply | WorkerState | CacheChanged
