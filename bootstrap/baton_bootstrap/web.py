"""Plain HTTP for people, probes and the operator: `/workers`, `/assignments`, `/health`, `/metrics`."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from fastapi import FastAPI, Request, Response

from baton_bootstrap.auth import HEADER, PROXIED_HEADER, admits
from baton_bootstrap.errors import Refused
from baton_bootstrap.metrics import Metrics
from baton_bootstrap.records import Assignment, Beat, Entry
from baton_bootstrap.registry import Registry


class WorkerRow(msgspec.Struct):
    """One line of `/workers`; `heard` is the seconds since the last heartbeat. From `revision` on: where the worker
    stands with its assignment, as in `Progress`. `links` are bytes a second by sender.
    """

    id: str
    incarnation: str
    role: str
    state: str
    model: str
    weights: str
    engine: str
    url: str
    keys: tuple[str, ...]
    tp: int
    pp: int
    running: int
    queued_tokens: int
    free_pages: int
    total_pages: int
    prompt_tokens: int
    prompt_seconds: float
    answer_tokens: int
    answer_seconds: float
    tick: int
    heard: float
    revision: str
    phase: str
    staged: str
    done: int
    total: int
    error: str
    gap_seconds: float
    links: dict[str, int]


class WorkerList(msgspec.Struct):
    """`waiting` counts requests that gateways hold because no worker is ready."""

    instance: str
    revision: int
    warming: bool
    waiting: int
    workers: list[WorkerRow]


def create_app(
    registry: Registry,
    metrics: Metrics,
    token: Callable[[], str | None] = lambda: None,
    on_assigned: Callable[[], None] = lambda: None,
) -> FastAPI:
    """`/workers` and `/assignments` ask for what `token` says now, when there is one; probes never do.

    `on_assigned` is called after assignments were taken over.
    """
    app = FastAPI(title="Baton bootstrap server", openapi_url=None)

    @app.get("/workers")
    async def workers(request: Request) -> Response:
        if not admits(token(), request.headers.get(HEADER), request.headers.get(PROXIED_HEADER)):
            return Response("the token is missing or wrong\n", status_code=401)
        rows = [_row(entry, beat, heard) for entry, beat, heard in registry.entries()]
        rows.sort(key=lambda row: (row.role, row.id))
        listing = WorkerList(registry.instance, registry.revision, registry.warming, registry.waiting, rows)
        return Response(msgspec.json.encode(listing), media_type="application/json")

    @app.put("/assignments")
    async def assign(request: Request) -> Response:
        """What workers are to serve, by worker id: all assignments of one author, in the place of those of before."""
        if not admits(token(), request.headers.get(HEADER)):
            return Response("the token is missing or wrong\n", status_code=401)
        try:
            registry.assign(msgspec.json.decode(await request.body(), type=dict[str, Assignment]))
        except (msgspec.MsgspecError, Refused) as error:
            return Response(f"{error}\n", status_code=400)
        on_assigned()
        return Response(status_code=204)

    @app.get("/health")
    async def health() -> dict[str, object]:
        return {"status": "warming" if registry.warming else "ok", "workers": len(registry)}

    @app.get("/metrics")
    async def metrics_text() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _row(entry: Entry, beat: Beat, heard: float) -> WorkerRow:
    worker, load, progress = entry.worker, entry.status.load, entry.status.progress
    return WorkerRow(
        id=worker.id,
        incarnation=worker.incarnation,
        role=worker.role,
        state=entry.status.state,
        model=worker.model,
        weights=worker.weight_digest,
        engine=worker.engine_digest,
        url=worker.http_url,
        keys=worker.keys,
        tp=worker.tp_size,
        pp=worker.pp_size,
        running=load.running,
        queued_tokens=load.queued_tokens,
        free_pages=load.free_pages,
        total_pages=load.total_pages,
        prompt_tokens=load.prompt_tokens,
        prompt_seconds=round(load.prompt_seconds, 3),
        answer_tokens=load.answer_tokens,
        answer_seconds=round(load.answer_seconds, 3),
        tick=beat.tick,
        heard=round(heard, 3),
        revision=progress.revision,
        phase=progress.phase,
        staged=progress.digest,
        done=progress.done,
        total=progress.total,
        error=progress.error,
        gap_seconds=progress.gap_seconds,
        links={name: round(rate) for name, rate in beat.links.items()},
    )
