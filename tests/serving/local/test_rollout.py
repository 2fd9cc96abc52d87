"""Rollouts over a real bootstrap server and gateway; the workers are stubs that follow their assignments."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import support.stub_worker

from baton_bootstrap.client import View
from baton_operator.api import InferenceService, parse_manifest
from baton_operator.rollout import Worker, serving
from baton_serving.errors import ConfigError, InvalidRequest
from baton_serving.local.control import Control, ask, running_services, socket_path
from baton_serving.local.manifest_file import ManifestFile
from baton_serving.local.plan import BOOTSTRAP, Kind, Machine, Plan, ProcessSpec, WorkerPlan, make_plan
from baton_serving.local.rollout import LocalRollout
from baton_serving.local.supervisor import Supervisor

pytestmark = pytest.mark.timeout(120)


def manifest(**rollout: object) -> InferenceService:
    text = f"""
apiVersion: baton.dev/v1alpha1
kind: InferenceService
metadata: {{name: roll}}
spec:
  model: {{uri: 'file://.'}}
  bootstrap: {{leaseSeconds: 6}}
  gateway: {{apiKeys: {{file: keys}}}}
  rollout: {rollout!r}
"""
    return parse_manifest(text.replace("True", "true").encode())


def staff(model: str, prefill: int, decode: int, settings: str = "") -> WorkerPlan:
    """Stubs that serve `model`, which is the name of its version too."""

    def spec(role: str, index: int) -> ProcessSpec:
        name = f"{role}-{index}"
        argv = (sys.executable, str(Path(support.stub_worker.__file__)), BOOTSTRAP, model)
        return ProcessSpec(name, Kind.WORKER, argv, {"BATON_WORKER_ID": name}, role)

    return WorkerPlan(f"of {model}", {"prefill": prefill, "decode": decode}, model, "", settings, spec)


class Fleet:
    """A running service; every view of its workers is checked."""

    def __init__(self, supervisor: Supervisor, rollout: LocalRollout) -> None:
        self.supervisor = supervisor
        self.rollout = rollout
        self.phases: list[str] = []
        rollout.on_news = lambda news: self.phases.append(news.phase)

    @property
    def digests(self) -> dict[str, str]:
        return {name: entry.worker.weight_digest for name, entry in self.supervisor.view.entries.items()}

    async def until(self, condition: Callable[[], bool], seconds: float = 40.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.supervisor.changed(), 0.1)
                self.check(self.supervisor.view)

    async def ended(self, phase: str, version: str) -> None:
        def over() -> bool:
            status = self.rollout.status()
            return (status.phase, status.version) == (phase, version)

        await self.until(over)

    def check(self, view: View) -> None:
        workers = [
            Worker(name, e.worker.role, e.worker.weight_digest, e.ready, whole=e.worker.role == "both")
            for name, e in view.entries.items()
        ]
        assert serving(workers), workers


@asynccontextmanager
async def fleet_of(tmp_path: Path, prefill: int, decode: int, **rollout: object) -> AsyncIterator[Fleet]:
    service = manifest(**rollout)
    (tmp_path / "keys").write_text("alice sk-1\n")
    real = make_plan(service, tmp_path, Machine(cores=2), gateway_port=0)
    first = staff("w1", prefill, decode)
    specs = [first.spec(role, index) for role, count in first.counts.items() for index in range(count)]
    plan = Plan("roll", "m", (*real.of(Kind.BOOTSTRAP), *specs, *real.of(Kind.GATEWAY)), first)
    supervisor = Supervisor(plan, on_line=lambda name, line: None)
    driver = LocalRollout(supervisor, first, service)
    running = asyncio.create_task(supervisor.run())
    rolling = asyncio.create_task(driver.run())
    try:
        await supervisor.ready()
        fleet = Fleet(supervisor, driver)
        await fleet.until(lambda: bool(driver.memory.stable))
        yield fleet
        if rolling.done():
            rolling.result()
    finally:
        rolling.cancel()
        supervisor.stop()
        await asyncio.gather(running, rolling, return_exceptions=True)


async def test_in_place_with_one_pair_then_a_broken_checkpoint_then_surge(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, 1, 1, strategy="InPlace") as fleet:
        pids = {name: slot.child.pid for name, slot in fleet.supervisor.slots.items() if slot.child}
        fleet.rollout.change(staff("w2", 1, 1), manifest(strategy="InPlace"))
        await fleet.ended("Done", "of w2")
        assert fleet.digests == {"prefill-0": "w2", "decode-0": "w2"}
        assert pids == {name: slot.child.pid for name, slot in fleet.supervisor.slots.items() if slot.child}

        fleet.rollout.change(staff("broken", 1, 1), manifest(strategy="InPlace"))
        await fleet.ended("Failed", "of broken")
        assert fleet.rollout.status().failed == "of broken"
        assert set(fleet.digests.values()) == {"w2"}

        fleet.rollout.change(staff("w3", 1, 1, settings="other flags"), manifest(strategy="InPlace"))
        await fleet.ended("Done", "of w3")
        await fleet.until(lambda: set(fleet.digests.values()) == {"w3"})
        assert pids.keys() & fleet.digests.keys() == set()


async def test_surge_that_cannot_start_goes_back_and_a_canary_can_be_undone(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, 2, 2) as fleet:
        fleet.rollout.change(staff("broken", 2, 2), manifest())
        await fleet.ended("Failed", "of broken")
        assert set(fleet.digests.values()) == {"w1"}

        fleet.rollout.change(staff("w2", 2, 2), manifest(canaryPercent=50))
        await fleet.until(lambda: fleet.rollout.status().phase == "Paused")
        assert sorted(fleet.digests.values()) == ["w1", "w1", "w2", "w2"]
        shares = {e.worker.weight_digest: e.status.share for e in fleet.supervisor.view.entries.values()}
        assert shares == {"w1": 50, "w2": 50}
        fleet.rollout.undo()
        await fleet.ended("Done", "of w1")
        await fleet.until(lambda: sorted(fleet.digests.values()) == ["w1"] * 4)
        with pytest.raises(InvalidRequest, match="nothing to undo"):
            fleet.rollout.undo()


async def test_the_manifest_and_the_control_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = tmp_path / "manifest.yaml"
    text = "apiVersion: baton.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: roll}\nspec: {model: {uri: 'file://.'}}\n"
    path.write_text(text)
    async with fleet_of(tmp_path, 1, 1) as fleet:
        control = Control("roll", fleet.rollout)
        await control.start()
        assert oct(socket_path("roll").stat().st_mode)[-3:] == "600"
        with pytest.raises(ConfigError, match="running already"):
            await Control("roll", fleet.rollout).start()
        assert await asyncio.to_thread(running_services) == ["roll"]
        status = await asyncio.to_thread(ask, "roll", "status")
        assert (status.phase, status.version, set(status.workers)) == ("Done", "of w1", {"prefill-0", "decode-0"})
        with pytest.raises(ConfigError, match="nothing to undo"):
            await asyncio.to_thread(ask, "roll", "undo")
        watched = ManifestFile(path, fleet.rollout, Machine(cores=2), undivided=False)
        watched.look()
        path.write_text("spec: nonsense")
        watched.look()
        assert fleet.rollout.status().version == "of w1"
        await asyncio.to_thread(ask, "roll", "pause")
        path.write_text(text.replace("file://.", f"file://{os.getcwd()}"))
        watched.look()
        await fleet.until(lambda: fleet.rollout.status().phase == "Paused")
        assert set(fleet.digests.values()) == {"w1"}
        await asyncio.to_thread(ask, "roll", "undo")
        await fleet.ended("Done", "of w1")
        await control.close()
    with pytest.raises(ConfigError, match="no service called roll"):
        ask("roll", "status")
