"""Calls that act on a worker: flush the cache, abort; and text to tokens and back."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from baton_serving.api.http.body import read_json, typed
from baton_serving.api.protocol.native import AbortBody, DetokenizeBody, MoveBody, TokenizeBody
from baton_serving.api.state import service_of
from baton_serving.errors import InvalidRequest


async def flush_cache(request: Request) -> Response:
    """Drop all cached KV that no request uses; says how many pages that freed."""
    result = await service_of(request).manager.control("flush_cache")
    return _json({"success": True, "pages": result["pages"]})


async def abort_request(request: Request) -> Response:
    """End a request by its rid, compared whole, or all. Its own response tells the end; unknown rids are no error."""
    service = service_of(request)
    body = typed(await read_json(request, service.options.max_body_bytes), AbortBody)
    if not body.rid and not body.abort_all:
        raise InvalidRequest("send rid, or abort_all: true", param="rid")
    found = service.manager.abort("" if body.abort_all else body.rid)
    return _json({"aborted": found})


async def move(request: Request) -> Response:
    """Stop a running choice and offer it to another worker; answers with the tokens it has once it stands still.

    The caller sends the request to that worker with `baton_resume` (those tokens) and `baton_handoff` (this transfer,
    this worker as peer). The stream here ends with finish "handoff", or goes on when nobody takes the choice over: at
    once when the caller says so with `withdraw`, unless the other worker has asked for the pages by then.
    """
    service = service_of(request)
    body = typed(await read_json(request, service.options.max_body_bytes), MoveBody)
    rid = service.manager.choice_rid(body.rid, body.choice)
    if body.withdraw:
        return _json(await service.manager.control("withdraw", {"transfer_id": body.transfer_id}))
    call = {"rid": rid, "transfer_id": body.transfer_id, "attempt": body.attempt}
    return _json(await service.manager.control("move", call))


async def tokenize(request: Request) -> Response:
    """Token ids of a text, or of each text of a list."""
    service = service_of(request)
    body = typed(await read_json(request, service.options.max_body_bytes), TokenizeBody)
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    tokens = [
        await service.intake.tokenize_text(text, "prompt", add_special_tokens=body.add_special_tokens) for text in texts
    ]
    counts = [len(ids) for ids in tokens]
    single = isinstance(body.prompt, str)
    return _json(
        {
            "tokens": tokens[0] if single else tokens,
            "count": counts[0] if single else counts,
            "max_model_len": service.intake.limits.context_length,
        }
    )


async def detokenize(request: Request) -> Response:
    """The text of token ids, or of each list of them."""
    service = service_of(request)
    body = typed(await read_json(request, service.options.max_body_bytes), DetokenizeBody)
    lists = [item for item in body.tokens if not isinstance(item, int)]
    single = not lists
    if lists and len(lists) != len(body.tokens):
        raise InvalidRequest("tokens mixes ids and lists of them: send one kind", param="tokens")
    if single:
        lists = [[item for item in body.tokens if isinstance(item, int)]]
    texts = [service.intake.text_of(ids, "tokens", skip_special_tokens=body.skip_special_tokens) for ids in lists]
    return _json({"text": texts[0] if single else texts})


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
