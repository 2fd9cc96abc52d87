"""The HTTP surface of a worker: which path is answered where."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from baton_serving import __version__
from baton_serving.api.http.auth import ApiKeyMiddleware
from baton_serving.api.http.identity import IdentityMiddleware
from baton_serving.api.http.problems import on_baton_error, on_fault, on_http_exception
from baton_serving.api.native import control, info, weights
from baton_serving.api.native.cache import cache_events
from baton_serving.api.native.generate import generate
from baton_serving.api.openai.chat import chat_completions
from baton_serving.api.openai.completions import completions
from baton_serving.api.openai.embeddings import embeddings
from baton_serving.api.openai.models import get_model, list_models
from baton_serving.api.state import Service
from baton_serving.errors import BatonError
from baton_serving.runtime import cache_frames

Endpoint = Callable[[Request], Awaitable[Response]]

ROUTES: Final[tuple[tuple[str, str, Endpoint], ...]] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/embeddings", embeddings),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{model:path}", get_model),
    ("POST", "/generate", generate),
    ("GET", "/health", info.health),
    ("GET", "/health_generate", info.health_generate),
    ("GET", "/model_info", info.model_info),
    ("GET", "/get_model_info", info.model_info),
    ("GET", "/server_info", info.server_info),
    ("GET", "/get_server_info", info.server_info),
    ("GET", "/get_load", info.get_load),
    ("GET", "/metrics", info.metrics),
    ("GET", "/flush_cache", control.flush_cache),
    ("POST", "/flush_cache", control.flush_cache),
    ("POST", "/abort_request", control.abort_request),
    ("POST", "/baton/move", control.move),
    ("GET", cache_frames.PATH, cache_events),
    ("POST", "/update_weights_from_disk", weights.update_from_disk),
    ("POST", "/update_weights_from_tensor", weights.update_from_tensor),
    ("POST", "/update_weights_from_distributed", weights.update_from_distributed),
    ("POST", "/init_weights_update_group", weights.init_group),
    ("POST", "/destroy_weights_update_group", weights.destroy_group),
    ("POST", "/pause_generation", weights.pause),
    ("POST", "/continue_generation", weights.resume),
    ("POST", "/release_memory_occupation", weights.release_memory),
    ("POST", "/resume_memory_occupation", weights.resume_memory),
    ("POST", "/tokenize", control.tokenize),
    ("POST", "/detokenize", control.detokenize),
)


def create_probe_app(service: Service) -> FastAPI:
    """What probes and scrapers may ask without a certificate or a key."""
    app = FastAPI(title="Baton", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service = service
    app.router.add_route("/health", info.health, methods=["GET"])
    app.router.add_route("/metrics", info.metrics, methods=["GET"])
    app.add_exception_handler(BatonError, on_baton_error)
    return app


def create_app(service: Service) -> FastAPI:
    """The ASGI app of one worker. The manager in `service` is started and closed by whoever made it."""
    app = FastAPI(title="Baton", version=__version__, openapi_url=None)
    app.state.service = service
    for method, path, endpoint in ROUTES:
        app.router.add_route(path, endpoint, methods=[method])
    app.add_exception_handler(BatonError, on_baton_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_fault)
    if service.options.api_key is not None:
        app.add_middleware(ApiKeyMiddleware, api_key=service.options.api_key)
    app.add_middleware(IdentityMiddleware, incarnation=lambda: service.manager.weights.incarnation)
    return app
