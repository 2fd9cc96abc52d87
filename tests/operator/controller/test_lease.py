"""The Lease: who may take it, who keeps it through trouble, who has lost it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from baton_operator.controller import lease as module
from baton_operator.controller.api_server import ApiServer
from baton_operator.controller.lease import Lease
from baton_operator.errors import NotFound, NotLeading, OperatorError, Refused, Unreachable


class Leases:
    """One Lease in memory; `trouble` is raised instead of an answer, once each."""

    def __init__(self) -> None:
        self.item: dict[str, Any] | None = None
        self.trouble: list[OperatorError] = []

    async def get(self, *_: object) -> dict[str, Any]:
        if self.trouble:
            raise self.trouble.pop()
        if self.item is None:
            raise NotFound(404, "no lease")
        return self.item

    async def create_lease(self, item: dict[str, Any]) -> dict[str, Any]:
        self.item = item
        return item

    replace_lease = create_lease

    @property
    def api(self) -> ApiServer:
        return cast(ApiServer, self)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PERIOD", 0.0)


async def test_a_free_lease_is_taken_and_released() -> None:
    leases, lease = Leases(), Lease("ns", "baton", "a")
    assert not lease.held()
    await lease.acquire(leases.api)
    assert lease.held()
    assert leases.item is not None
    assert leases.item["spec"]["holderIdentity"] == "a"
    await lease.release(leases.api)
    assert not lease.held()
    assert leases.item["spec"]["holderIdentity"] == ""


async def test_another_waits_while_it_is_held() -> None:
    leases = Leases()
    first, second = Lease("ns", "baton", "a"), Lease("ns", "baton", "b")
    await first.acquire(leases.api)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(second.acquire(leases.api), 0.05)
    await first.release(leases.api)
    await second.acquire(leases.api)
    assert second.held()


async def test_a_pod_that_starts_again_goes_on_at_once() -> None:
    leases = Leases()
    await Lease("ns", "baton", "a").acquire(leases.api)
    again = Lease("ns", "baton", "a")
    await again.acquire(leases.api)
    assert leases.item is not None
    assert leases.item["spec"]["leaseTransitions"] == 1


@pytest.mark.parametrize("trouble", [Unreachable("away"), Refused(403, "forbidden")], ids=["away", "forbidden"])
async def test_trouble_with_the_api_server_does_not_end_it(trouble: OperatorError) -> None:
    leases, lease = Leases(), Lease("ns", "baton", "a")
    leases.trouble = [trouble]
    await lease.acquire(leases.api)
    leases.trouble = [trouble]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lease.keep(leases.api), 0.05)
    assert lease.held()


async def test_a_lease_that_another_has_taken_is_lost() -> None:
    leases, lease = Leases(), Lease("ns", "baton", "a")
    await lease.acquire(leases.api)
    leases.item = {"spec": {"holderIdentity": "b", "leaseDurationSeconds": 3600}}
    with pytest.raises(NotLeading, match="taken by b"):
        await lease.keep(leases.api)
