"""Fixtures of the handoff tests. The harness beside this file is imported by the tests under its own name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from handoff_harness import Cluster


@pytest.fixture(params=["fake", "mooncake", "nixl"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(request.param)
    yield made
    made.close()


@pytest.fixture
def fake_cluster() -> Iterator[Cluster]:
    made = Cluster("fake")
    yield made
    made.close()
