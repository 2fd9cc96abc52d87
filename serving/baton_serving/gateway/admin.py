"""The gateway's own routes: health, models, metrics, explain. FastAPI applications; not on the data path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import orjson
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response

from baton_serving.api.http.problems import on_baton_error, on_fault, on_http_exception
from baton_serving.errors import BatonError, NotFound
from baton_serving.gateway.core import Core
from baton_serving.gateway.fleet import Endpoint

Routes = Mapping[str, Callable[..., Awaitable[Response]]]


class Whole(Protocol):
    """What all processes of this gateway say together."""

    async def metrics(self) -> bytes: ...

    async def explain(self, request_id: str) -> dict[str, object] | None: ...


def admin_app(core: Core, whole: Whole) -> FastAPI:
    """For clients."""
    return _app({**_figures(core, whole), **_answers(core, whole)})


def probe_app(core: Core, whole: Whole) -> FastAPI:
    """For probes, scrapers and whoever runs the service: nothing here is of any one request."""
    return _app(_figures(core, whole))


def _app(routes: Routes) -> FastAPI:
    app = FastAPI(title="Baton gateway", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(BatonError, on_baton_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_fault)
    for path, endpoint in routes.items():
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None)
    return app


def _figures(core: Core, whole: Whole) -> Routes:
    async def health() -> Response:
        """200 while requests can be served: some model has workers for them, and nobody asked for the end."""
        ready = sorted(name for name, fleet in core.router.fleet.models.items() if fleet.serves)
        state = "draining" if core.draining else "ok" if ready else "no worker is ready"
        return _json({"status": state, "models": ready}, 200 if state == "ok" else 503)

    async def liveness() -> Response:
        return _json({"status": "ok"})

    async def metrics() -> Response:
        return Response(await whole.metrics(), media_type=CONTENT_TYPE_LATEST)

    async def workers() -> Response:
        """Every worker in view, as this process deals with it."""
        return _json([_worker(one) for one in core.router.fleet.endpoints.values()])

    async def versions() -> Response:
        """For each model the versions that can serve and their weights among new requests."""
        return _json({name: dict(fleet.shares) for name, fleet in core.router.fleet.models.items()})

    return {
        "/health": health,
        "/readiness": health,
        "/liveness": liveness,
        "/metrics": metrics,
        "/v1/baton/workers": workers,
        "/v1/baton/versions": versions,
    }


def _answers(core: Core, whole: Whole) -> Routes:
    async def models() -> Response:
        """The union over all workers."""
        names = sorted(core.router.fleet.models)
        return _json({"object": "list", "data": [_model(name) for name in names]})

    async def model(name: str) -> Response:
        """The card of one model; names may hold slashes."""
        models = core.router.fleet.models
        if name not in models:
            raise NotFound(f"there is no model {name!r}; there are {', '.join(sorted(models))}")
        return _json(_model(name))

    async def explain(request_id: str) -> Response:
        """Where a request went and why, and when it passed its stages."""
        found = await whole.explain(request_id)
        if found is None:
            raise NotFound(f"nothing is remembered of a request {request_id!r}: it never was, or is long over")
        return _json(found)

    return {"/v1/models": models, "/v1/models/{name:path}": model, "/v1/baton/explain/{request_id:path}": explain}


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "baton"}


def _worker(endpoint: Endpoint) -> dict[str, object]:
    return {
        "id": endpoint.id,
        "incarnation": endpoint.incarnation,
        "role": endpoint.worker.role,
        "model": endpoint.worker.model,
        "weights": endpoint.weight_digest,
        "state": endpoint.status.state,
        "responsive": endpoint.responsive,
        "url": endpoint.worker.http_url,
        "running": endpoint.running,
        "queued_tokens": endpoint.queued_tokens,
    }


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
