"""One request (one choice of one client request) as the scheduler sees it, and the table of its states."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import msgspec

from baton_serving.errors import InternalError
from baton_serving.kv.manager import RequestPages
from baton_serving.kv.radix import pack
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.events import Finish, Timings
from baton_serving.scheduling.policy import Running, Waiting
from baton_serving.scheduling.step import TokenLogprobs


class LogprobOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`start` is the first prompt position whose log-probability is wanted (-1: output only).

    `replay` asks for those of the output tokens that the request begins with, too; they come as if they were the
    prompt's, behind it.
    """

    start: int = -1
    replay: bool = False
    top: int = 0
    token_ids: tuple[int, ...] = ()


class State(Enum):
    NEW = "new"  # not taken in yet
    WAITING = "waiting"  # in the queue; holds nothing
    PREFILL = "prefill"  # holds slot and pages; some of its prompt is not planned yet
    DECODE = "decode"  # all planned but the tokens to come
    RETRACTING = "retracting"  # off the batch, back to the queue when its last launched step is over
    STOPPING = "stopping"  # off the batch, to be handed over when its last launched step is over
    HANDING_OFF = "handing off"  # keeps its pages for a peer to read
    RESERVED = "reserved"  # holds slot and pages for a peer to write
    JOINING = "joining"  # its KV is here; takes part from the next step on
    LEAVING = "leaving"  # its terminal output is out; waits for its last launched step, reader or writer
    GONE = "gone"  # holds nothing, nobody will hear of it again


class Event(Enum):
    QUEUE = "queue"
    ADMIT = "admit"
    PREFILLED = "prefilled"  # the last chunk is planned
    RETRACT = "retract"
    STOP = "stop"  # prefill leg complete, or extraction of a running request
    QUIET = "quiet"  # no launched step contains the request any more
    RESERVE = "reserve"
    JOIN = "join"
    END = "end"  # terminal output
    DROP = "drop"  # slot and pages given back


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.NEW, Event.QUEUE): State.WAITING,
    (State.NEW, Event.RESERVE): State.RESERVED,
    (State.NEW, Event.END): State.LEAVING,
    (State.WAITING, Event.ADMIT): State.PREFILL,
    (State.WAITING, Event.END): State.LEAVING,
    (State.PREFILL, Event.PREFILLED): State.DECODE,
    (State.PREFILL, Event.RETRACT): State.RETRACTING,
    (State.PREFILL, Event.END): State.LEAVING,
    (State.DECODE, Event.RETRACT): State.RETRACTING,
    (State.DECODE, Event.STOP): State.STOPPING,
    (State.DECODE, Event.END): State.LEAVING,
    (State.RETRACTING, Event.QUIET): State.WAITING,
    (State.RETRACTING, Event.END): State.LEAVING,
    (State.STOPPING, Event.QUIET): State.HANDING_OFF,
    (State.STOPPING, Event.END): State.LEAVING,
    (State.HANDING_OFF, Event.JOIN): State.JOINING,
    (State.HANDING_OFF, Event.END): State.LEAVING,
    (State.RESERVED, Event.JOIN): State.JOINING,
    (State.RESERVED, Event.END): State.LEAVING,
    (State.RESERVED, Event.DROP): State.GONE,
    (State.JOINING, Event.PREFILLED): State.DECODE,
    (State.JOINING, Event.END): State.LEAVING,
    (State.LEAVING, Event.DROP): State.GONE,
}


class Request:
    """A request and where it stands.

    Token counts: `computed` of its tokens have their KV computed once all planned steps are over; `kv` of them have it
    now. `planned` output tokens will have been sampled once all planned steps are over; `len(output)` are known.
    `namespace` keeps apart KV that must never be shared: weight digest, adapter, cache salt. `output`, at the start,
    are tokens that another worker reported, with the prompt's log-probabilities: generation goes on after them.
    `embed` asks for the prompt's embedding; such a request may have no output (`limit` 0).
    """

    __slots__ = (
        "announced",
        "arrival",
        "blocker",
        "blocker_pages",
        "cached",
        "computed",
        "embed",
        "ended",
        "ended_badly",
        "eos_ids",
        "goal",
        "goal_key",
        "handoff",
        "held",
        "kv",
        "last_step",
        "limit",
        "logprob_end",
        "logprob_next",
        "logprob_planned",
        "logprobs",
        "min_new",
        "namespace",
        "output",
        "output_logprobs",
        "params",
        "pinned_by_peer",
        "planned",
        "priority",
        "prompt",
        "prompt_logprobs",
        "retracted",
        "rid",
        "sent",
        "slot",
        "state",
        "stop_ids",
        "timings",
        "unpublished",
    )

    def __init__(
        self,
        rid: str,
        prompt: list[int],
        params: SamplingParams,
        *,
        eos_ids: frozenset[int] = frozenset(),
        namespace: str = "",
        priority: int = 0,
        logprobs: LogprobOptions | None = None,
        handoff: bool = False,
        output: Sequence[int] = (),
        received: float = 0.0,
        embed: bool = False,
    ) -> None:
        self.rid = rid
        self.prompt = prompt
        self.params = params
        self.eos_ids = eos_ids
        self.namespace = namespace
        self.priority = priority
        self.logprobs = logprobs
        self.handoff = handoff
        self.embed = embed
        self.timings = Timings(received=received)
        stops = frozenset(params.stop_token_ids)
        self.stop_ids = stops if params.ignore_eos else stops | eos_ids
        self.min_new = params.min_new_tokens
        self.limit = params.max_new_tokens  # output tokens; lowered to what context and pool allow when taken in
        self.arrival = 0
        self.state = State.NEW
        self.output = list(output)
        self.slot = -1
        self.held: RequestPages | None = None
        self.goal = len(prompt)  # tokens, on resumption of the output too, to compute before the next is sampled
        self.goal_key = b""  # those tokens as the tree's key, while in the queue or in prefill
        self.computed = 0
        self.kv = 0
        self.planned = 0
        self.sent = len(self.output)  # output tokens reported
        self.last_step = -1  # last step that contains this request
        self.cached = -1  # prompt tokens found in the tree at first admission; -1: not admitted yet
        self.retracted = False
        self.announced = 0  # pages announced to the handoff
        self.pinned_by_peer = False  # a peer may still read or write its pages
        self.ended = False  # its terminal output is out
        self.ended_badly = False  # its KV may be unsound
        self.unpublished = False  # its prompt is on its way into the tree
        self.blocker: Request | None = None  # computes a prefix that this one waits for …
        self.blocker_pages = 0  # … until so many pages of it are in the tree
        self.prompt_logprobs: list[TokenLogprobs] | None = None
        self.output_logprobs: list[TokenLogprobs] = []
        self.logprob_next = self.logprob_end = len(prompt)  # the next and last position to be measured as prompt
        replay = logprobs is not None and logprobs.replay
        if logprobs is not None and (replay or (logprobs.start >= 0 and not self.output)):
            self.prompt_logprobs = []
            if logprobs.start >= 0:
                self.logprob_next = max(1, logprobs.start)  # nothing predicts position 0
            self.logprob_end = len(prompt) + len(self.output)
        self.logprob_planned = self.logprob_next  # the same once all planned steps are over

    @property
    def prefix_limit(self) -> int:
        """How many leading tokens may come from the cache: one must be computed, and all that owe a log-probability."""
        return max(0, min(self.goal - 1, self.logprob_next - 1)) if self.owes_prompt_logprobs else self.goal - 1

    @property
    def owes_prompt_logprobs(self) -> bool:
        return self.prompt_logprobs is not None and self.logprob_next < self.logprob_end

    @property
    def page_list(self) -> RequestPages:
        if self.held is None:
            raise InternalError(f"request {self.rid} holds no pages in state {self.state.value}")
        return self.held

    def advance(self, event: Event) -> None:
        """Change state by the table; InternalError when the table has no such entry."""
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            raise InternalError(f"request {self.rid}: {event.value} in state {self.state.value}")
        self.state = after

    def tokens(self, start: int, end: int) -> list[int]:
        """Token ids at positions [start, end) of prompt and output."""
        prompt_len = len(self.prompt)
        if end <= prompt_len:
            return self.prompt[start:end]
        return self.prompt[start:] + self.output[max(0, start - prompt_len) : end - prompt_len]

    def key(self) -> bytes:
        """All tokens known, as the radix tree's key."""
        return pack(self.prompt + self.output)

    def set_goal(self) -> None:
        """Aim at all tokens known: they are to be found in the tree or computed before the next one is sampled."""
        self.goal = len(self.prompt) + len(self.output)
        self.goal_key = self.key()
        self.planned = len(self.output)
        self.computed = self.kv = 0
        self.logprob_planned = self.logprob_next

    def truncate(self, tokens: int) -> None:
        """Keep the last `tokens` tokens of the prompt; what was asked of their positions moves with them."""
        dropped = len(self.prompt) - tokens
        self.prompt = self.prompt[dropped:]
        self.logprob_next = self.logprob_planned = max(1, self.logprob_next - dropped)
        self.logprob_end -= dropped

    def finish_at(self, count: int) -> Finish | None:
        """Whether the request is finished by its output token number `count` (from 1), and why."""
        token = self.output[count - 1] if count else -1
        if token in self.stop_ids and count > self.min_new:
            return Finish("stop", token)
        return Finish("length") if count >= self.limit else None

    def take_prompt_logprobs(self) -> list[TokenLogprobs] | None:
        """The prompt's log-probabilities when they are complete and were not taken before."""
        if self.prompt_logprobs is None or self.owes_prompt_logprobs:
            return None
        taken, self.prompt_logprobs = self.prompt_logprobs, None
        return taken

    def waiting_view(self) -> Waiting:
        return Waiting(self.priority, self.retracted or bool(self.output), self.arrival, self.params.max_new_tokens)

    def running_view(self) -> Running:
        return Running(self.priority, len(self.output), len(self.prompt), self.arrival)
