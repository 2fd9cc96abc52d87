"""What a client may ask of the sampler, and what executors are told and answer about it. Plain data, no torch."""

from __future__ import annotations

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling parameters of one choice. Field names are those of the native `/generate` route.

    `temperature` 0 means greedy. `top_k` -1 means all tokens. `seed` keys the random numbers together with the
    position of the token drawn, so a seeded choice does not depend on its batch company. `logit_bias` maps token ids
    to additive biases. `stop` strings are found by the detokenizer, `stop_token_ids` by the scheduler.
    `custom_logit_processor` names one of the server's processors, which is handed `custom_params`.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    custom_logit_processor: str | None = None
    custom_params: dict[str, object] | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def penalised(self) -> bool:
        """Whether the sampler must count this request's tokens."""
        return self.frequency_penalty != 0.0 or self.presence_penalty != 0.0 or self.repetition_penalty != 1.0


class SlotSetup(msgspec.Struct, array_like=True):
    """Sent once when a request gets a slot (first admission, resumption, arrival from a peer).

    `prompt` feeds the repetition penalty and is empty when nothing needs it; `output` are the tokens already
    generated: the last is the input of the next decode row, and their count keys the random numbers.
    """

    slot: int
    params: SamplingParams
    prompt: list[int]
    output: list[int]
    eos_token_ids: list[int] = []


class LogprobRow(msgspec.Struct, array_like=True):
    """Log-probabilities wanted of one row: `top` alternatives per token, `token_ids` always reported besides.

    `prompt_from` is the first prompt position whose own log-probability is wanted of this row (-1: none). Position p is
    predicted by the row's logits at p - 1, so it is never the row's first position; the last wanted one is the row's
    last position, or, when `next_token` is set, the one after it: that is the prompt token which begins the next chunk.
    """

    row: int
    top: int
    prompt_from: int = -1
    token_ids: list[int] = []
    next_token: int = -1


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Log-probability of one token, the best alternatives (id, logprob) in falling order, and the asked-for ids."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []
    chosen: list[tuple[int, float]] = []
