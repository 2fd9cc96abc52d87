"""Fixtures of the handoff tests: workers over each transfer backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.handoff_workers import Cluster, Worker


@pytest.fixture(params=["fake", "mooncake", "nixl"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(request.param)
    yield made
    made.close()


@pytest.fixture(scope="module", params=["fake", "mooncake", "nixl"])
def shared(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Workers `p` and `d` that the tests of a module share, because engines of some backends close slowly."""
    made = Cluster(request.param)
    made.worker("p", pages=300)
    made.worker("d", pages=300)
    yield made
    made.close()


@pytest.fixture
def pair(shared: Cluster) -> tuple[Worker, Worker]:
    """A sender with random pages and a receiver with empty ones."""
    sender, receiver = shared.workers
    sender.fill(1)
    for pool in receiver.pools:
        pool.pages[:] = 0
    return sender, receiver


@pytest.fixture
def fake_cluster() -> Iterator[Cluster]:
    made = Cluster("fake")
    yield made
    made.close()
