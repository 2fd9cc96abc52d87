"""What the API hands to the tokenizer manager, and what it gets back: free of any route's spelling."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from baton_serving.runtime.messages import HandoffTicket, LogprobOptions, Timings, TokenOutput
from baton_serving.runtime.served import UNKNOWN_WEIGHTS, ServedWeights
from baton_serving.sampling.params import SamplingParams


@dataclass(frozen=True)
class Choice:
    """One answer that is wanted. `prompt` indexes the request's prompts; the others are as in `GenerateInput`."""

    prompt: int
    params: SamplingParams
    output_ids: tuple[int, ...] = ()
    logprobs: LogprobOptions | None = None
    handoff: HandoffTicket | None = None
    embed: bool = False


@dataclass(frozen=True)
class GenerateRequest:
    """One request, tokenized and validated: `choices` in the order in which answers are numbered.

    `timeout` in seconds bounds the whole request. `received` is unix time. `route` names the request's origin in logs.
    `prefix_keys` are a gateway's names for the beginnings of the first prompt: see `runtime.cache_frames.read_names`.
    `past_gate`: it runs though the worker takes no requests now.
    """

    rid: str
    prompts: list[list[int]]
    choices: list[Choice]
    stream: bool = False
    priority: int = 0
    timeout: float | None = None
    trace: str = ""
    route: str = ""
    prefix_keys: str = ""
    received: float = field(default_factory=time.time)
    past_gate: bool = False


def cached_prompt_tokens(request: GenerateRequest, cached: Sequence[int]) -> int:
    """Prompt tokens that needed no computing, from each choice's count: of a prompt's choices the least one counts."""
    least: dict[int, int] = {}
    for choice, count in zip(request.choices, cached, strict=True):
        least[choice.prompt] = min(least.get(choice.prompt, count), count)
    return sum(least.values())


@dataclass(frozen=True)
class ChoiceOutput:
    """What came since the last output of choice `index`: several steps' worth when the reader was slow.

    `weights` are those with which the request began, the same in all its outputs.
    """

    index: int
    text: str
    tokens: TokenOutput
    weights: ServedWeights = UNKNOWN_WEIGHTS


@dataclass
class RequestRecord:
    """What became of a request, for logs, metrics and crash dumps. Times are unix seconds, 0 while not reached.

    `outcome` is the finish kind of the first choice, "disconnected", or the code of the error that ended the request.
    """

    request: GenerateRequest
    output_ids: list[list[int]]
    texts: list[list[str]]
    cached_tokens: list[int]
    last_output: list[float]
    finish_kinds: list[str]
    first_token: float = 0.0
    finished: float = 0.0
    outcome: str = ""
    message: str = ""
    timings: Timings | None = None

    @classmethod
    def of(cls, request: GenerateRequest) -> RequestRecord:
        count = len(request.choices)
        return cls(
            request=request,
            output_ids=[list(choice.output_ids) for choice in request.choices],
            texts=[[] for _ in range(count)],
            cached_tokens=[0] * count,
            last_output=[0.0] * count,
            finish_kinds=[""] * count,
        )

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.request.prompts)

    @property
    def cached_prompt_tokens(self) -> int:
        return cached_prompt_tokens(self.request, self.cached_tokens)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated here, so without those that another worker had sent."""
        resumed = sum(len(choice.output_ids) for choice in self.request.choices)
        return sum(len(ids) for ids in self.output_ids) - resumed
