"""The native formats: `{"text", "output_ids", "meta_info"}` per answer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from copy import copy

import msgspec

from baton_serving.api.http import sse
from baton_serving.api.options import AppOptions
from baton_serving.api.protocol.common import ChoiceExtension
from baton_serving.runtime.detokenizer import replayed_text
from baton_serving.runtime.messages import Finish, TokenOutput
from baton_serving.runtime.outputs import merge
from baton_serving.runtime.requests import Choice, ChoiceOutput, GenerateRequest
from baton_serving.runtime.vocabulary import Vocabulary
from baton_serving.scheduling.step import TokenLogprobs

Triple = tuple[float | None, int, str | None]


class NativeRenderer:
    """`batch`: a whole response is a list, and events of a stream carry `index`. `with_text`: log-probabilities name
    their token's text as well as its id. `timings`: a finished answer says when it passed its stages.
    """

    def __init__(
        self,
        request: GenerateRequest,
        vocabulary: Vocabulary,
        options: AppOptions,
        *,
        batch: bool,
        with_text: bool,
        timings: bool = False,
    ) -> None:
        self._request = request
        self._vocabulary = vocabulary
        self._options = options
        self._batch = batch
        self._with_text = with_text
        self._timings = timings
        self._seen: dict[int, ChoiceOutput] = {}

    def event(self, output: ChoiceOutput) -> bytes:
        """One event: what the choice says so far, or with `stream_output` what is new."""
        shown = output if self._options.stream_output else self._accumulate(output)
        data = self._answer(shown)
        if self._batch:
            data["index"] = output.index
        return sse.event(data, output)

    def end(self) -> bytes:
        return b""

    def whole(self, answers: list[ChoiceOutput]) -> bytes:
        shown = [self._answer(self._accumulate(answer)) for answer in answers]
        return msgspec.json.encode(shown if self._batch else shown[0])

    def _accumulate(self, output: ChoiceOutput) -> ChoiceOutput:
        """Everything said so far, tokens that another worker had sent included."""
        earlier = self._seen.get(output.index)
        if earlier is None:
            choice = self._request.choices[output.index]
            prompt = self._request.prompts[choice.prompt]
            text = replayed_text(self._vocabulary, prompt, choice.params, choice.output_ids)
            earlier = ChoiceOutput(
                output.index, text, TokenOutput(rid="", token_ids=list(choice.output_ids)), output.weights
            )
        # Copied, since the stream's event still names the new tokens alone.
        tokens = merge(earlier.tokens, _as_said_first(self._request.choices[output.index], output.tokens))
        self._seen[output.index] = ChoiceOutput(output.index, earlier.text + output.text, tokens, output.weights)
        return self._seen[output.index]

    def _answer(self, output: ChoiceOutput) -> dict[str, object]:
        tokens = output.tokens
        choice = self._request.choices[output.index]
        meta: dict[str, object] = {
            "id": self._request.rid,
            "finish_reason": None if tokens.finish is None else _finish_reason(tokens.finish, tokens.completion_tokens),
            "prompt_tokens": len(self._request.prompts[choice.prompt]),
            "completion_tokens": tokens.completion_tokens,
            "cached_tokens": tokens.cached_tokens,
            "weight_version": output.weights.version,
            "weight_digest": output.weights.digest,
            "e2e_latency": time.time() - self._request.received,
        }
        if choice.logprobs is not None:
            self._add_logprobs(meta, output)
        if self._timings and tokens.finish is not None and tokens.timings is not None:
            meta["baton"] = ChoiceExtension(tokens.timings)
        return {"text": output.text, "output_ids": tokens.token_ids, "meta_info": meta}

    def _add_logprobs(self, meta: dict[str, object], output: ChoiceOutput) -> None:
        choice = self._request.choices[output.index]
        options = choice.logprobs
        assert options is not None
        answer, prompt = output.tokens.logprobs, output.tokens.prompt_logprobs or []
        meta["output_token_logprobs"] = self._triples(answer)
        if options.top:
            meta["output_top_logprobs"] = [self._pairs(entry.top) for entry in answer]
        if options.token_ids:
            meta["output_token_ids_logprobs"] = [self._pairs(entry.chosen) for entry in answer]
        if options.start < 0:
            return
        first: list[Triple] = []
        if options.start == 0:
            token_id = self._request.prompts[choice.prompt][0]
            first = [(None, token_id, self._text(token_id))]
        meta["input_token_logprobs"] = [*first, *self._triples(prompt)]
        unknown: list[list[Triple] | None] = [None] * len(first)
        if options.top:
            meta["input_top_logprobs"] = [*unknown, *(self._pairs(entry.top) for entry in prompt)]
        if options.token_ids:
            meta["input_token_ids_logprobs"] = [*unknown, *(self._pairs(entry.chosen) for entry in prompt)]

    def _triples(self, entries: Iterable[TokenLogprobs]) -> list[Triple]:
        return [(entry.logprob, entry.token_id, self._text(entry.token_id)) for entry in entries]

    def _pairs(self, pairs: Iterable[tuple[int, float]]) -> list[Triple]:
        return [(logprob, token_id, self._text(token_id)) for token_id, logprob in pairs]

    def _text(self, token_id: int) -> str | None:
        return self._vocabulary.token_bytes(token_id).decode("utf-8", "replace") if self._with_text else None


def _as_said_first(choice: Choice, tokens: TokenOutput) -> TokenOutput:
    """Log-probabilities of tokens that another worker had sent come behind the prompt's: put them where they belong."""
    measured = tokens.prompt_logprobs
    if measured is None or choice.logprobs is None or not choice.logprobs.replay:
        return tokens
    ours = copy(tokens)
    at = len(measured) - len(choice.output_ids)
    ours.prompt_logprobs, ours.logprobs = measured[:at], measured[at:] + tokens.logprobs
    return ours


def _finish_reason(finish: Finish, length: int) -> dict[str, object]:
    if finish.kind == "length":
        return {"type": "length", "length": length}
    if finish.kind == "abort":
        return {"type": "abort", "message": "the request was aborted"}
    return {"type": finish.kind, "matched": finish.matched}
