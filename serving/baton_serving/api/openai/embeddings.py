"""POST /v1/embeddings, on a worker started with `--is-embedding`."""

from __future__ import annotations

import base64
from array import array
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from baton_serving.api.extras import generate_request, origin_of
from baton_serving.api.http.answer import gather, unless_disconnected
from baton_serving.api.http.body import read_json, typed
from baton_serving.api.openai.render import check_model, prompts_of
from baton_serving.api.protocol.openai import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from baton_serving.api.state import service_of
from baton_serving.errors import InternalError, InvalidRequest
from baton_serving.runtime.requests import Choice
from baton_serving.sampling.params import SamplingParams

_NOTHING = SamplingParams(max_new_tokens=0, temperature=0.0)


async def embeddings(request: Request) -> Response:
    """The embedding of each input: the last token's final hidden state, scaled to length 1."""
    service = service_of(request)
    fields = typed(await read_json(request, service.options.max_body_bytes), EmbeddingRequest)
    check_model(fields.model, service.options)
    if not service.options.is_embedding:
        raise InvalidRequest("this worker generates text: start one with --is-embedding to serve /v1/embeddings")
    prompts = [await service.intake.tokenize(prompt, "input") for prompt in prompts_of(fields.input, "input")]
    choices = [Choice(prompt=index, params=_NOTHING, embed=True) for index in range(len(prompts))]
    wanted = generate_request(origin_of(request), fields, service.intake, prompts, choices, stream=False)
    async with aclosing(service.manager.generate(wanted)) as outputs:
        answers = await unless_disconnected(request, gather(outputs))
    vectors = [_vector(answer.tokens.embedding, fields.dimensions) for answer in answers]
    as_text = fields.encoding_format == "base64"
    tokens = sum(map(len, prompts))
    body = EmbeddingList(
        [Embedding(index, _base64(vector) if as_text else vector) for index, vector in enumerate(vectors)],
        service.options.served_model_name,
        EmbeddingUsage(tokens, tokens),
    )
    return Response(msgspec.json.encode(body), media_type="application/json")


def _vector(vector: list[float] | None, dimensions: int | None) -> list[float]:
    """A prefix of a vector means something only to models that were trained for it, which none says of itself."""
    if vector is None:
        raise InternalError("the scheduler returned no embedding")
    if dimensions not in (None, len(vector)):
        raise InvalidRequest(f"dimensions must be {len(vector)}, which is what this model has", param="dimensions")
    return vector


def _base64(vector: list[float]) -> str:
    return base64.b64encode(array("f", vector).tobytes()).decode()
