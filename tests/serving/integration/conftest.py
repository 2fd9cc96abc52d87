"""One fleet of real processes for all tests of this folder: starting a worker takes longer than most of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from support.baton_processes import BATON_TINY, BatonProcesses
from support.disaggregation import Fleet, Shape, start_fleet


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, the tests that share the fleet share one worker of xdist, and so one fleet.

    Starting processes takes a minute on a loaded machine.
    """
    for item in items:
        if isinstance(item, pytest.Function) and "shared_fleet" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("fleet"))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def session_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatonProcesses]:
    with BatonProcesses(tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture(scope="session")
def shared_fleet(session_processes: BatonProcesses) -> Fleet:
    """A pair over Mooncake with page hashes compared, and an undivided worker. Tests leave it as they found it."""
    return start_fleet(session_processes, BATON_TINY, Shape(verify=True), whole="decode")


@pytest.fixture
def fleet(session_processes: BatonProcesses, shared_fleet: Fleet) -> Fleet:
    """The shared fleet, every worker of it alive."""
    shared_fleet.revive()
    return shared_fleet


@pytest.fixture
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatonProcesses]:
    """Processes of one test alone."""
    with BatonProcesses(tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=90) as opened:
        yield opened
