"""Leadership: of several operators the one that holds the Lease works.

The protocol is that of client-go's leader election: a Lease may be taken when nobody holds it, or when it has not
changed for as long as its holder promised to renew it, by this process's own clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from baton_operator.controller.api_server import ApiServer
from baton_operator.controller.resources import LEASES
from baton_operator.errors import ApiError, NotFound, NotLeading, Unreachable
from baton_operator.planner.objects import Object, int_at, map_at, text_at

log = logging.getLogger(__name__)

DURATION: Final = 15.0  # seconds after which a Lease that was not renewed may be taken
_SAFE: Final = 10.0  # seconds after a renewal for which its holder relies on it
_PERIOD: Final = 2.0


class Lease:
    """The Lease `name`, for the operator `identity`.

    A pod that starts again under its old name takes its own Lease at once: two processes of one name do not exist.
    """

    def __init__(self, namespace: str, name: str, identity: str) -> None:
        self._namespace, self._name, self._identity = namespace, name, identity
        self._renewed = -_SAFE
        self._seen: tuple[Object, float] = ({}, 0.0)

    def held(self) -> bool:
        """Whether nobody else can hold it now."""
        return time.monotonic() < self._renewed + _SAFE

    async def acquire(self, api: ApiServer) -> None:
        """Wait until it is ours."""
        while True:
            if await self._try(api):
                log.info("lease taken")
                return
            await asyncio.sleep(_PERIOD)

    async def keep(self, api: ApiServer) -> None:
        """Renew it for ever. Raises `NotLeading` once another has it."""
        while True:
            await asyncio.sleep(_PERIOD)
            if not await self._try(api) and self._holder() not in ("", self._identity):
                raise NotLeading(f"the Lease {self._name} was taken by {self._holder()}")

    async def release(self, api: ApiServer) -> None:
        """Let a successor begin at once."""
        if not self.held():
            return
        self._renewed = -_SAFE
        try:
            item = await api.get(LEASES, self._namespace, self._name)
            if text_at(item, "spec", "holderIdentity") == self._identity:
                spec = {**map_at(item, "spec"), "holderIdentity": "", "leaseDurationSeconds": 1}
                await api.replace_lease({**item, "spec": spec})
        except (ApiError, Unreachable) as error:
            log.warning("the lease was not released: %s", error)

    async def _try(self, api: ApiServer) -> bool:
        began = time.monotonic()
        try:
            taken = await self._take(api)
        except (ApiError, Unreachable) as error:  # an API server that has just started forbids everything for a moment
            log.warning("the lease cannot be renewed now: %s", error)
            return False
        if taken:
            self._renewed = began
        return taken

    async def _take(self, api: ApiServer) -> bool:
        try:
            item = await api.get(LEASES, self._namespace, self._name)
        except NotFound:
            metadata = {"name": self._name, "namespace": self._namespace}
            kind = {"apiVersion": LEASES.api_version, "kind": LEASES.kind}
            await api.create_lease({**kind, "metadata": metadata, "spec": self._spec({})})
            return True
        spec = map_at(item, "spec")
        if spec != self._seen[0]:
            self._seen = (spec, time.monotonic())
        holder, promised = self._holder(), int_at(spec, "leaseDurationSeconds")
        if holder not in ("", self._identity) and time.monotonic() < self._seen[1] + promised:
            return False
        made = await api.replace_lease({**item, "spec": self._spec(spec)})
        self._seen = (map_at(made, "spec"), time.monotonic())
        return True

    def _holder(self) -> str:
        return text_at(self._seen[0], "holderIdentity")

    def _spec(self, before: Mapping[str, object]) -> dict[str, object]:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
        same = text_at(before, "holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(DURATION),
            "acquireTime": text_at(before, "acquireTime") if same else now,
            "renewTime": now,
            "leaseTransitions": int_at(before, "leaseTransitions") + (not same),
        }
