"""Real bootstrap server and gateway processes; the workers are stubs that register."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import support.stub_worker

from baton_operator.api import parse_manifest
from baton_serving.errors import ConfigError, InternalError
from baton_serving.local.plan import BOOTSTRAP, Kind, Machine, Plan, ProcessSpec, make_plan
from baton_serving.local.supervisor import Supervisor
from baton_serving.local.table import service_table, state_of

MANIFEST = b"""
apiVersion: baton.dev/v1alpha1
kind: InferenceService
metadata: {name: demo}
spec: {model: {uri: 'file://.'}, bootstrap: {leaseSeconds: 60}}
"""


def stub(name: str, *options: str) -> ProcessSpec:
    argv = (sys.executable, str(Path(support.stub_worker.__file__)), BOOTSTRAP, *options)
    return ProcessSpec(name, Kind.WORKER, argv, {"BATON_WORKER_ID": name}, "worker")


def plan_with(tmp_path: Path, *workers: ProcessSpec) -> Plan:
    real = make_plan(parse_manifest(MANIFEST), tmp_path, Machine(cores=2), gateway_port=0)
    return Plan("demo", "demo", (*real.of(Kind.BOOTSTRAP), *workers, *real.of(Kind.GATEWAY)), real.workers)


@asynccontextmanager
async def running(plan: Plan, *, restart: bool = True) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(plan, on_line=lambda name, line: None, restart=restart)
    task = asyncio.create_task(supervisor.run())
    try:
        await supervisor.ready()
        yield supervisor
    finally:
        supervisor.stop()
        await task


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_starts_all_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(plan_with(tmp_path, stub("worker-0"), stub("worker-1"))) as supervisor:
        assert set(supervisor.view.entries) == {"worker-0", "worker-1"}
        async with aiohttp.ClientSession() as session, session.get(f"{supervisor.url}/liveness") as response:
            assert response.status == 200
        pids = [slot.child.pid for slot in supervisor.slots.values() if slot.child is not None]
        assert len(pids) == 4
        states = [state_of(slot, supervisor) for slot in supervisor.slots.values()]
        assert states == ["running", "ready", "ready", "running"]
        assert service_table(supervisor).row_count == 4
    assert not any(exists(pid) for pid in pids)


@pytest.mark.parametrize("victim", ["worker-0", "gateway", "bootstrap-0"])
async def test_what_dies_is_started_again_where_it_was(tmp_path: Path, victim: str) -> None:
    async with running(plan_with(tmp_path, stub("worker-0"))) as supervisor:
        slot, url = supervisor.slots[victim], supervisor.url
        facts, child = slot.facts, slot.child
        assert child is not None
        incarnation = supervisor.view.entries["worker-0"].worker.incarnation
        child.signal(signal.SIGKILL)
        while slot.running:
            await supervisor.changed()
        assert slot.last_status == -signal.SIGKILL
        while slot.facts is facts or not supervisor.is_ready:
            await supervisor.changed()
        assert slot.starts == 2
        if victim == "worker-0":
            while supervisor.view.entries["worker-0"].worker.incarnation == incarnation:
                await supervisor.changed()
        else:
            assert supervisor.url == url
            assert {key: value for key, value in slot.facts.items() if key != "pid"} == {
                key: value for key, value in facts.items() if key != "pid"
            }


async def test_without_restart_the_first_death_ends_everything(tmp_path: Path) -> None:
    supervisor = Supervisor(plan_with(tmp_path, stub("worker-0")), on_line=lambda name, line: None, restart=False)
    task = asyncio.create_task(supervisor.run())
    await supervisor.ready()
    child = supervisor.slots["worker-0"].child
    assert child is not None
    child.signal(signal.SIGKILL)
    with pytest.raises(InternalError, match="worker-0 ended"):
        await task


async def test_a_process_that_never_comes_up_ends_everything_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"worker-1 did not start \(exit status 2\):\nthe model is missing"):
        async with running(plan_with(tmp_path, stub("worker-0"), stub("worker-1", "broken"))):
            pass


async def test_a_stopped_process_is_killed_when_it_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton_serving.local.supervisor.STOP_SECONDS", 0.2)
    async with running(plan_with(tmp_path, stub("worker-0"))) as supervisor:
        child = supervisor.slots["worker-0"].child
        assert child is not None
        child.signal(signal.SIGSTOP)
    assert not exists(child.pid)
