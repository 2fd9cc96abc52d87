"""What the chat and completion formats have in common."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from baton_serving.api.openai.usage import UsageCounter
from baton_serving.api.options import AppOptions
from baton_serving.api.protocol.common import ChoiceExtension, CommonFields
from baton_serving.api.protocol.openai import StreamOptions
from baton_serving.errors import Cancelled, InvalidRequest, NotFound
from baton_serving.runtime.detokenizer import replayed_text
from baton_serving.runtime.requests import ChoiceOutput, GenerateRequest
from baton_serving.runtime.vocabulary import Vocabulary


@dataclass
class ResponseHead:
    """The fields that all events of one response share, and its running token counts.

    `system_fingerprint` is the digest of the weights that answer: known with the first output.
    """

    id: str
    created: int
    model: str
    system_fingerprint: str
    include_usage: bool
    usage: UsageCounter
    timings: bool = False
    resumed: frozenset[int] = frozenset()  # choices of which the client has something

    def begin(self, output: ChoiceOutput) -> None:
        """Take note of an output before it is written."""
        self.system_fingerprint = output.weights.digest


def response_head(
    prefix: str,
    request: GenerateRequest,
    fields: CommonFields,
    stream_options: StreamOptions | None,
    options: AppOptions,
) -> ResponseHead:
    resume = fields.baton_resume
    return ResponseHead(
        id=(resume.id if resume is not None else None) or f"{prefix}-{request.rid}",
        created=(resume.created if resume is not None else None) or int(request.received),
        model=options.served_model_name,
        system_fingerprint="",
        include_usage=bool(stream_options is not None and stream_options.include_usage),
        usage=UsageCounter(request, report_cached=options.enable_cache_report),
        timings=bool(fields.baton_timings),
        resumed=frozenset(index for index, ids in enumerate(resume.output_ids if resume else ()) if ids),
    )


def extension(head: ResponseHead, output: ChoiceOutput) -> ChoiceExtension | UnsetType:
    """What Baton adds to a finished choice, where the request asked for it."""
    tokens = output.tokens
    if not head.timings or tokens.finish is None or tokens.timings is None:
        return UNSET
    return ChoiceExtension(tokens.timings)


def check_model(model: str | None, options: AppOptions) -> None:
    """Refuse a model this worker does not serve. None, "" and "default" mean whatever it serves."""
    if model not in (None, "", "default", options.served_model_name):
        raise NotFound(f"the model {model!r} is not served here, {options.served_model_name!r} is")


def check_generates(options: AppOptions) -> None:
    if options.is_embedding:
        raise InvalidRequest("this worker embeds and generates nothing: ask /v1/embeddings, or a worker without it")


def check_top(value: int | None, name: str, limit: int = 20) -> int:
    if value is None:
        return 0
    if not 0 <= value <= limit:
        raise InvalidRequest(f"{name} must be between 0 and {limit}", param=name)
    return value


def finish_reason(output: ChoiceOutput) -> str | None:
    """OpenAI's word for why the choice ended. Raises Cancelled when it was aborted: the answer is not whole."""
    finish = output.tokens.finish
    if finish is not None and finish.kind == "abort":
        raise Cancelled("the request was aborted")
    if finish is None:
        return None
    return "length" if finish.kind == "handoff" else finish.kind  # a prefill leg: nobody reads its answer


def earlier_text(request: GenerateRequest, vocabulary: Vocabulary, index: int) -> str:
    """The text of choice `index` that another worker's client had already been shown."""
    choice = request.choices[index]
    return replayed_text(vocabulary, request.prompts[choice.prompt], choice.params, choice.output_ids)


def prompts_of(prompt: str | list[str | int | list[int]], name: str) -> list[str | list[int]]:
    """The prompts in the field `name`, from any of the four ways to write them."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest(f"{name} is empty: send some text", param=name)
    ids = [item for item in prompt if isinstance(item, int)]
    if ids:
        if len(ids) != len(prompt):
            raise InvalidRequest(f"{name} mixes token ids with other items: send one kind", param=name)
        return [ids]
    return [item for item in prompt if not isinstance(item, int)]
