"""Between protobuf messages and the types of the runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from baton_serving.api.grpc.generated import generation_pb2 as pb
from baton_serving.api.protocol.common import CommonFields, HandoffFields, ResumeFields
from baton_serving.errors import InvalidRequest
from baton_serving.runtime.intake import Prompt
from baton_serving.runtime.messages import Finish, LogprobOptions
from baton_serving.runtime.requests import ChoiceOutput
from baton_serving.sampling.params import TokenLogprobs

MAX_TOP_LOGPROBS: Final = 128


def prompt_of(request: pb.GenerateRequest) -> tuple[Prompt, str]:
    """The prompt and the name of its field. Raises InvalidRequest when there is none."""
    kind = request.WhichOneof("prompt")
    if kind == "text":
        return request.text, kind
    if kind == "input_ids":
        return list(request.input_ids.ids), kind
    raise InvalidRequest("send either text or input_ids", param="text")


def sampling_of(params: pb.SamplingParams) -> Mapping[str, object]:
    """The fields that are set, named as at /generate."""
    values: dict[str, object] = {}
    for field, value in params.ListFields():
        if field.name == "logit_bias":
            values[field.name] = dict(value)
        elif field.name in ("stop", "stop_token_ids"):
            values[field.name] = list(value)
        else:
            values[field.name] = value
    return values


def common_of(request: pb.GenerateRequest) -> CommonFields:
    handoff, resume = request.handoff, request.resume
    return CommonFields(
        rid=request.rid or None,
        priority=request.priority,
        baton_handoff=HandoffFields(handoff.transfer_id, handoff.peer, handoff.attempt, handoff.receiver)
        if request.HasField("handoff")
        else None,
        baton_resume=ResumeFields([list(tokens.ids) for tokens in resume]) if resume else None,
    )


def logprobs_of(request: pb.GenerateRequest, prompt_length: int) -> LogprobOptions | None:
    if not request.HasField("logprobs"):
        return None
    options = request.logprobs
    start = options.start if options.HasField("start") else -1
    if start > prompt_length:
        raise InvalidRequest(f"logprobs.start must be at most the prompt's {prompt_length} tokens", param="logprobs")
    if options.top > MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"logprobs.top must be at most {MAX_TOP_LOGPROBS}", param="logprobs")
    return LogprobOptions(start=start, top=options.top, token_ids=tuple(options.token_ids))


def response_of(output: ChoiceOutput) -> pb.GenerateResponse:
    tokens = output.tokens
    return pb.GenerateResponse(
        index=output.index,
        text=output.text,
        token_ids=tokens.token_ids,
        prompt_tokens=tokens.prompt_tokens,
        cached_tokens=tokens.cached_tokens,
        completion_tokens=tokens.completion_tokens,
        logprobs=_logprobs(tokens.logprobs),
        prompt_logprobs=_logprobs(tokens.prompt_logprobs or []),
        finish=None if tokens.finish is None else _finish(tokens.finish),
    )


def _logprobs(entries: Iterable[TokenLogprobs]) -> list[pb.TokenLogprobs]:
    return [
        pb.TokenLogprobs(
            token_id=entry.token_id,
            logprob=entry.logprob,
            top=[pb.Candidate(token_id=token_id, logprob=logprob) for token_id, logprob in entry.top],
            chosen=[pb.Candidate(token_id=token_id, logprob=logprob) for token_id, logprob in entry.chosen],
        )
        for entry in entries
    ]


def _finish(finish: Finish) -> pb.Finish:
    if isinstance(finish.matched, int):
        return pb.Finish(kind=finish.kind, token_id=finish.matched)
    return pb.Finish(kind=finish.kind, text=finish.matched)
