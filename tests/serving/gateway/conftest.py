from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.gateway_bench import Bench, gateway_bench

from baton_serving.gateway.routing import RoutingConfig


@pytest.fixture
def config() -> RoutingConfig:
    return RoutingConfig(policy="round_robin", attempts=3, worker_wait=0.3)


@pytest.fixture
async def bench(config: RoutingConfig) -> AsyncIterator[Bench]:
    async with gateway_bench(config) as made:
        yield made
