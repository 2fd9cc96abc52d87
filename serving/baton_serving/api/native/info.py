"""What a worker says about itself: health, model, server, load, metrics."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import aclosing
from typing import Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from baton_serving import __version__
from baton_serving.api.state import service_of
from baton_serving.errors import BatonError, Unavailable
from baton_serving.runtime.requests import Choice, GenerateRequest
from baton_serving.runtime.tokenizer_manager import TokenizerManager
from baton_serving.sampling.params import SamplingParams

PROBE_TIMEOUT: Final = 20.0  # seconds that a one-token answer may take before the worker counts as ill


async def health(request: Request) -> Response:
    """200 while the scheduler's tick moves or a declared long operation runs; 503 if not, or while draining."""
    manager = service_of(request).manager
    if manager.ready:
        return Response()
    if manager.alive:
        raise Unavailable("the worker is shutting down: it takes no new requests")
    raise Unavailable("the scheduler is not answering: its loop has not turned lately")


async def health_generate(request: Request) -> Response:
    """200 when one token could be generated through the whole pipeline."""
    service = service_of(request)
    probe = GenerateRequest(
        rid=f"health-{uuid.uuid4().hex}",
        prompts=[[0]],
        choices=[Choice(prompt=0, params=SamplingParams(max_new_tokens=1, temperature=0.0))],
        timeout=PROBE_TIMEOUT,
        route=request.url.path,
    )
    try:
        async with aclosing(service.manager.generate(probe)) as outputs:
            async for _ in outputs:
                pass
    except BatonError as error:
        raise Unavailable(f"no token could be generated: {error.message}") from error
    return Response()


async def model_info(request: Request) -> Response:
    service = service_of(request)
    options = service.options
    return _json(
        {
            "model_path": options.model_path,
            "tokenizer_path": options.tokenizer_path,
            "served_model_name": options.served_model_name,
            "is_generation": True,
            "preferred_sampling_params": dict(service.intake.preferred) or None,
            "weight_version": options.weight_version,
            "weight_digest": options.weight_digest,
            "context_length": service.intake.limits.context_length,
            "vocab_size": service.intake.limits.vocab_size,
        }
    )


async def server_info(request: Request) -> Response:
    """The flags in force, and the scheduler's figures."""
    service = service_of(request)
    options = service.options
    return _json(
        {
            **options.server_args,
            "model_path": options.model_path,
            "tokenizer_path": options.tokenizer_path,
            "served_model_name": options.served_model_name,
            "weight_version": options.weight_version,
            "weight_digest": options.weight_digest,
            "version": __version__,
            "status": _status(service.manager),
            "internal_states": [dict(service.manager.stats)],
        }
    )


async def get_load(request: Request) -> Response:
    """What waits and runs here, one entry per data-parallel rank."""
    service = service_of(request)
    stats = service.manager.stats
    running, waiting = _figure(stats, "requests_running"), _figure(stats, "requests_waiting")
    running += _figure(stats, "requests_prefilling")
    tokens = _figure(stats, "pages_in_use") * service.options.page_size
    return _json([{"dp_rank": 0, "num_reqs": running + waiting, "num_waiting_reqs": waiting, "num_tokens": tokens}])


async def metrics(request: Request) -> Response:
    service = service_of(request)
    return Response(service.metrics.exposition(service.manager.stats), media_type=CONTENT_TYPE_LATEST)


def _status(manager: TokenizerManager) -> str:
    return "ready" if manager.ready else "draining" if manager.alive else "unhealthy"


def _figure(stats: Mapping[str, float], name: str) -> int:
    return int(stats.get(name, 0))


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
