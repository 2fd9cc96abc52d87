"""Whether the operator may go: while services exist, nobody else changes, repairs or removes them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from baton_operator.controller.api_server import ApiServer, connected
from baton_operator.controller.resources import SERVICES
from baton_operator.errors import NotFound
from baton_operator.planner.objects import Object, text_at

_SHOWN = 10


async def check_removal(namespaces: Sequence[str]) -> int:
    """Exit status 1, with the reason on stderr, while there is a service in the namespaces, or in any when empty."""
    async with connected() as client:
        found = await _services(ApiServer(client, lambda: False, lambda *_: None), namespaces)
    if not found:
        return 0
    names = sorted(f"{text_at(item, 'metadata', 'namespace')}/{text_at(item, 'metadata', 'name')}" for item in found)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    print(
        f"services exist: {', '.join(names[:_SHOWN])}{more}. Without an operator they cannot be changed, repaired or"
        " deleted. Delete them first with kubectl delete inferenceservices.baton.dev, or leave them as they are with"
        " helm uninstall --no-hooks.",
        file=sys.stderr,
    )
    return 1


async def _services(api: ApiServer, namespaces: Sequence[str]) -> list[Object]:
    scope: Sequence[str | None] = namespaces or [None]
    try:
        return [item for namespace in scope for item in await api.list(SERVICES, namespace, {})]
    except NotFound:  # the definitions are gone, and with them every service
        return []
