"""kopf as the watcher: what happens to a service or its children puts the service's key into the queue, no more.

Event handlers only: change handlers and returned results would write annotations and status into users' objects, and
kopf would retry what our own queue retries.

kopf has a thread and an event loop of its own: when it ends it stops every task of its loop, whoever began it, and
raises what any of them raised.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from threading import Event
from typing import Any

import kopf

from baton_operator.controller.resources import CHILDREN, OPTIONAL, SERVICES
from baton_operator.planner.context import INSTANCE, PROMOTED, UNDONE

_BURST = 0.2  # seconds for which the changes of children are gathered into one round
_WATCH_SECONDS = 300
_BACKOFF = (1, 1, 2, 3, 5, 8, *(15 for _ in range(240)))  # an hour without an API server


async def watch(
    changed: Callable[[tuple[str, str], float], None], namespaces: Sequence[str], apis: frozenset[str]
) -> None:
    """Call `changed(key, delay)` on this loop for every event, until cancelled; raises what ends kopf before."""
    loop = asyncio.get_running_loop()
    stop = Event()

    def tell(key: tuple[str, str], delay: float) -> None:
        loop.call_soon_threadsafe(changed, key, delay)

    thread = asyncio.create_task(asyncio.to_thread(asyncio.run, _watch(tell, namespaces, apis, stop)))
    try:
        await asyncio.shield(thread)
    finally:
        stop.set()
        await thread


async def _watch(
    changed: Callable[[tuple[str, str], float], None],
    namespaces: Sequence[str],
    apis: frozenset[str],
    stop: Event,
) -> None:
    registry = kopf.OperatorRegistry()
    settings = _settings()
    kopf.on.login(registry=registry)(_login)
    # Our own writes of the status come back as events too: they ask for nothing.
    seen: dict[tuple[str, str], tuple[object, ...]] = {}

    @kopf.on.event(SERVICES.group, "v1alpha1", SERVICES.plural, registry=registry)
    async def service_changed(*, namespace: str | None, name: str, meta: kopf.Meta, type: str, **_: Any) -> None:  # noqa: A002
        key = namespace or "", name
        steered = [meta.get("annotations", {}).get(name) for name in (PROMOTED, UNDONE)]
        kept = [meta.get(one) for one in ("uid", "generation", "deletionTimestamp")]
        mark = (*kept, *steered, str(meta.get("finalizers")))
        if type == "DELETED":
            seen.pop(key, None)
        elif seen.get(key) == mark:
            return
        else:
            seen[key] = mark
        changed(key, 0.0)

    async def child_changed(*, namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        if service := labels.get(INSTANCE):
            changed((namespace or "", service), _BURST)

    for resource in CHILDREN:
        if resource.watched and (resource.api_version not in OPTIONAL or resource.api_version in apis):
            version = resource.api_version.rpartition("/")[2]
            kopf.on.event(resource.group, version, resource.plural, registry=registry, id=resource.plural)(
                child_changed
            )
            settings.watching.label_selectors[resource.group, version, resource.plural] = INSTANCE
    try:
        await kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
        )
    finally:
        stop.set()  # a thread of kopf's waits for it


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # we write our own events
    settings.scanning.disabled = True  # no rights on namespaces and definitions
    settings.watching.server_timeout = _WATCH_SECONDS
    settings.watching.client_timeout = _WATCH_SECONDS + 30
    settings.networking.error_backoffs = _BACKOFF
    return settings


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """As `connected` in `api_server` does."""
    if os.environ.get("KUBECONFIG"):
        return kopf.login_with_kubeconfig(**kwargs)
    return kopf.login_with_service_account(**kwargs)
