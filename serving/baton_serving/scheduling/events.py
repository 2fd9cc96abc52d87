"""What the scheduler tells the world: tokens and ends of requests, and what a handoff must know."""

from __future__ import annotations

import msgspec

from baton_serving.scheduling.step import TokenLogprobs


class Finish(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request ended well: `kind` is "stop", "length", "abort" or "handoff" (it goes on at another worker).

    `matched` is the stop token id, or for "abort" the reason.
    """

    kind: str
    matched: int | str | None = None


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request ended badly: `code` is one of `errors.ERRORS_BY_CODE`."""

    code: str
    message: str
    param: str | None = None


class Timings(msgspec.Struct, omit_defaults=True):
    """Times in seconds, by the scheduler's clock, at which a request passed each stage (0: not passed).

    `transfer_seconds` is how long writes of `transfer_bytes` were under way, most of it while the prefill went on;
    `transport` is what moved them.
    """

    received: float = 0.0
    queued: float = 0.0
    scheduled: float = 0.0
    prefilled: float = 0.0
    transfer_started: float = 0.0
    transferred: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0
    transfer_bytes: int = 0
    transfer_pages: int = 0
    transfer_seconds: float = 0.0
    transport: str = ""


class TokenOutput(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """New tokens of one request. Exactly one output of a request carries `finish` or `failure`, and it is the last.

    `prompt_logprobs` comes with the first output that follows the prompt, `timings` with the first token and the last
    output, `embedding` with the only output of a request for one. `completion_tokens` counts all tokens so far, these
    included.
    """

    rid: str
    token_ids: list[int] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish: Finish | None = None
    failure: Failure | None = None
    timings: Timings | None = None
    embedding: list[float] | None = None


class ChunkReady(msgspec.Struct):
    """Pages of a request to hand over whose KV is complete: `pages[g]` from page index `first[g]` on, in KV group g.

    Window groups list only pages that the receiver needs: those of the prompt's last window. `tokens` of the prompt
    are computed. `last` says that the prompt is complete, its partly filled last page included.
    """

    rid: str
    first: list[int]
    pages: list[list[int]]
    tokens: int
    last: bool


class Snapshot(msgspec.Struct):
    """A request that stands still so that another worker can go on with it.

    KV stands for the first `kv_tokens` of `prompt_ids + output_ids`: all but the last output token, which is the input
    of the next decode row; `len(output_ids)` keys its random numbers. `pages[g][i]` is page index i (NULL_PAGE: not
    needed). `unsent` counts the last output tokens that this worker did not report: the receiver reports them, with
    `logprobs` (of those tokens) and `prompt_logprobs`.
    """

    rid: str
    prompt_ids: list[int]
    output_ids: list[int]
    kv_tokens: int
    pages: list[list[int]]
    cached_tokens: int
    unsent: int
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs] | None


HandoffEvent = ChunkReady | Snapshot


class Reservation(msgspec.Struct):
    """Room for a request that arrives from a peer: the first `prefix_tokens` of its prompt are here already.

    The peer writes page indices `first[g]` … into `pages[g]`, in KV group g, up to the last page of the prompt.
    """

    rid: str
    slot: int
    prefix_tokens: int
    first: list[int]
    pages: list[list[int]]
