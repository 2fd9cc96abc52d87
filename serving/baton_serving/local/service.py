"""A handle on a service that runs as local processes, for scripts and tests without a loop of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from baton_bootstrap.client import View
from baton_operator.api import InferenceService, load_manifest
from baton_operator.errors import ManifestError
from baton_serving.errors import BatonError, ConfigError, DeadlineExceeded
from baton_serving.local.manifest_file import ManifestFile
from baton_serving.local.plan import Kind, Machine, Plan, make_plan
from baton_serving.local.rollout import LocalRollout, RolloutStatus
from baton_serving.local.supervisor import Supervisor

START_SECONDS = 300.0


def this_machine() -> Machine:
    """Cores and GPUs of this machine, as far as this process may use them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        gpus = tuple(part for part in named.split(",") if part)
    else:
        gpus = tuple(sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int))
    return Machine(cores=len(os.sched_getaffinity(0)), gpus=gpus)


def read_manifest(path: Path) -> InferenceService:
    """The manifest at `path` (ConfigError)."""
    try:
        return load_manifest(path)
    except ManifestError as error:
        raise ConfigError(str(error)) from error


def plan_manifest(path: Path, *, gateway_port: int | None = None, undivided: bool = False) -> Plan:
    """The processes of the manifest at `path`. Raises ConfigError, also for what is wrong in the manifest."""
    return make_plan(read_manifest(path), path.parent, this_machine(), gateway_port=gateway_port, undivided=undivided)


class LocalService:
    """Runs a manifest as local processes for the length of a `with` block; inside it the service is ready.

    `on_line(name, line)` hears the processes' log lines, on another thread. `start` raises ConfigError or
    InternalError, with what the process said last, when one does not come up.
    """

    def __init__(
        self,
        manifest: Path,
        *,
        gateway_port: int = 0,
        undivided: bool = False,
        restart: bool = True,
        on_line: Callable[[str, str], None] = lambda name, line: None,
    ) -> None:
        self._service = read_manifest(manifest)
        self._manifest = manifest
        self._undivided = undivided
        self.plan = plan_manifest(manifest, gateway_port=gateway_port, undivided=undivided)
        self.rollout: LocalRollout
        self._restart = restart
        self._on_line = on_line
        self._loop = asyncio.new_event_loop()
        self._supervisor: Supervisor
        self._started = threading.Event()
        self._error: BatonError | None = None
        self._thread = threading.Thread(target=self._run, name="local-service", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the gateway listens: `http://host:port`."""
        return self._supervisor.url

    @property
    def view(self) -> View:
        """The workers as the bootstrap server sees them now."""
        return self._supervisor.view

    @property
    def bootstrap(self) -> list[str]:
        """Where the bootstrap servers listen: `host:port` each."""
        slots = self._supervisor.slots.values()
        return [str(slot.facts["grpc"]) for slot in slots if slot.spec.kind is Kind.BOOTSTRAP]

    def pid(self, name: str) -> int:
        """Process id of a process of the plan, such as "decode-0", in its present run."""
        child = self._supervisor.slots[name].child
        if child is None:
            raise KeyError(name)
        return child.pid

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process and all it started."""
        os.killpg(self.pid(name), number)

    def start(self) -> None:
        """Return once the service can be used. Raises ConfigError, InternalError or DeadlineExceeded."""
        self._thread.start()
        in_time = self._started.wait(START_SECONDS)
        if self._error is not None or not in_time:
            self.stop()
            raise self._error or DeadlineExceeded(f"the service was not ready within {START_SECONDS:.0f} s")

    def stop(self) -> None:
        """End all processes; a second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._supervisor.stop)
            self._thread.join()

    def wait_until(self, condition: Callable[[View], bool], timeout: float) -> None:
        """Return once the view of the workers fulfils `condition`. Raises TimeoutError."""
        asyncio.run_coroutine_threadsafe(self._until(condition), self._loop).result(timeout)

    def rollout_status(self) -> RolloutStatus:
        """How the manifest's latest change is coming on."""

        async def look() -> RolloutStatus:
            return self.rollout.status()

        return asyncio.run_coroutine_threadsafe(look(), self._loop).result()

    async def _until(self, condition: Callable[[View], bool]) -> None:
        while not condition(self._supervisor.view):
            await self._supervisor.changed()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BatonError as error:
            self._error = error
        finally:
            self._started.set()
            self._loop.close()

    async def _serve(self) -> None:
        self._supervisor = Supervisor(self.plan, on_line=self._on_line, restart=self._restart)
        self.rollout = LocalRollout(self._supervisor, self.plan.workers, self._service)
        manifest = ManifestFile(self._manifest, self.rollout, this_machine(), undivided=self._undivided)
        running = asyncio.create_task(self._supervisor.run())
        beside = [asyncio.create_task(self.rollout.run()), asyncio.create_task(manifest.run())]
        await self._supervisor.ready()
        if not self._supervisor.stopping:  # else something failed, which `running` tells
            self._started.set()
        try:
            await running
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
