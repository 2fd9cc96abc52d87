"""Starts the processes of a plan in order, restarts those that die, stops them all."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from baton_bootstrap.client import View, WatchClient
from baton_serving.errors import BatonError, ConfigError, InternalError
from baton_serving.local.child import Announcement, Child
from baton_serving.local.plan import BOOTSTRAP, HOST, HTTP_PORT, MEETING, PORT, Kind, Plan, ProcessSpec
from baton_serving.logs import fields

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.5  # seconds before a child that died is started again, doubled each time
LONGEST_PAUSE = 15.0
SETTLED = 30.0  # seconds after which a child that ran counts as healthy: the next pause is the first again
STOP_SECONDS = 4.0  # for children to end by themselves, gateway and workers first, then bootstrap servers
CONFIG_STATUS = 2  # exit status by which a command says that its input is wrong


@dataclass
class Slot:
    """One process of the plan through all its restarts. `facts` are what it announced last."""

    spec: ProcessSpec
    child: Child | None = None
    running: bool = False
    facts: Announcement = field(default_factory=dict)
    starts: int = 0
    last_status: int | None = None
    leaving: bool = False
    keeper: asyncio.Task[None] | None = None
    later: bool = False  # added while the service ran: its failure to start is somebody's news, not the service's end

    @property
    def refused(self) -> str:
        """What its process said when it last ended without ever being ready, or ""."""
        if not self.later or self.facts or self.last_status is None or self.child is None:
            return ""
        return "; ".join(list(self.child.last_lines)[-3:]) or f"exit status {self.last_status}"


class Supervisor:
    """`run` until `stop`; `ready` returns once every worker is ready and the gateway answers.

    `on_line(name, line)` hears what the children write. Without `restart` the first death ends everything.
    """

    def __init__(self, plan: Plan, *, on_line: Callable[[str, str], None], restart: bool = True) -> None:
        self.plan = plan
        self.slots = {spec.name: Slot(spec) for spec in plan.processes}
        self._on_line = on_line
        self._restart = restart
        self._stopping = asyncio.Event()
        self._news = asyncio.Event()
        self._failure: BaseException | None = None
        self._watch: WatchClient | None = None
        self._bootstraps = [self.slots[spec.name] for spec in plan.of(Kind.BOOTSTRAP)]

    @property
    def url(self) -> str:
        """The gateway's URL, once it has announced itself."""
        return str(self.slots["gateway"].facts.get("http", ""))

    @property
    def figures_url(self) -> str:
        """Where the gateway tells of workers and versions without an API key."""
        return str(self.slots["gateway"].facts.get("probes") or self.url)

    @property
    def view(self) -> View:
        """The workers as the bootstrap servers see them."""
        return View() if self._watch is None else self._watch.view

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def is_ready(self) -> bool:
        entries = self.view.entries
        names = (spec.name for spec in self.plan.of(Kind.WORKER))
        return bool(self.url) and all(name in entries and entries[name].ready for name in names)

    def stop(self) -> None:
        self._stopping.set()
        self._tell()

    async def changed(self) -> None:
        """Return when a process started, announced itself or ended, or the view of the workers changed."""
        await self._news.wait()

    async def ready(self) -> None:
        """Return once the service can be used, or is stopping."""
        while not (self.is_ready or self.stopping):
            await self.changed()

    async def run(self) -> None:
        """Keep everything running. Raises ConfigError or InternalError when a process cannot be kept at all."""
        for slot in self.slots.values():
            self._employ(slot)
        following = asyncio.create_task(self._follow())
        following.add_done_callback(self._keeper_ended)
        try:
            await self._stopping.wait()
        finally:
            self._stopping.set()
            if self._watch is not None:
                await self._watch.aclose()
            await self._stop_children()
            tasks = [following, *(slot.keeper for slot in self.slots.values() if slot.keeper is not None)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    def add(self, spec: ProcessSpec) -> None:
        """Start one more worker, and keep it running. It may fail to start: see `Slot.refused`."""
        slot = self.slots[spec.name] = Slot(spec, later=True)
        self._employ(slot)
        self._tell()

    def remove(self, name: str) -> None:
        """Ask a worker to end its open requests and then itself; its slot goes with it."""
        slot = self.slots[name]
        if not slot.leaving:
            slot.leaving = True
            if slot.child is not None:
                slot.child.signal(signal.SIGTERM)
            self._tell()

    def _employ(self, slot: Slot) -> None:
        slot.keeper = asyncio.create_task(self._keep(slot))
        slot.keeper.add_done_callback(self._keeper_ended)

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and keeper.exception() is not None and not self.stopping:
            self._failure = keeper.exception()
            self.stop()

    async def _keep(self, slot: Slot) -> None:
        """Start the process of `slot`, and again whenever it ends, until it does so while stopping or leaving."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while not self.stopping:
            if slot.spec.kind is not Kind.BOOTSTRAP:
                await self._bootstraps_known()
            started = loop.time()
            slot.last_status = await self._run_once(slot)
            if slot.leaving:
                self.slots.pop(slot.spec.name, None)
                self._tell()
            if self.stopping or slot.leaving:
                return
            if (not slot.facts and not slot.later) or not self._restart:
                raise _death(slot)
            pause = FIRST_PAUSE if loop.time() - started > SETTLED else pause
            log.warning(
                "process ended, starting it again",
                extra=fields(name=slot.spec.name, status=slot.last_status, pause=pause),
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            if slot.leaving:
                self.slots.pop(slot.spec.name, None)
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _run_once(self, slot: Slot) -> int:
        name, known = slot.spec.name, self._known(slot)
        child = await Child.start(slot.spec.command(known), slot.spec.env, lambda line: self._on_line(name, line))
        slot.child = child
        slot.running = True
        slot.starts += 1
        self._tell()
        others: list[Child] = []
        try:
            for spec in slot.spec.nodes:
                others.append(await Child.start(spec.command(known), spec.env, child.hear))
            facts = await child.announcement()
            if facts is not None:
                slot.facts = facts
                self._tell()
            return await child.ended()
        finally:
            for one in (child, *others):
                one.kill_group()
            await asyncio.gather(*(one.ended() for one in others))
            slot.running = False
            self._tell()

    async def _bootstraps_known(self) -> None:
        while not all(slot.facts for slot in self._bootstraps):
            await self.changed()

    def _known(self, slot: Slot) -> Mapping[str, str]:
        """What the placeholders in the command stand for by now: a process that comes back keeps its ports."""
        known = {BOOTSTRAP: ",".join(str(one.facts.get("grpc", "")) for one in self._bootstraps)}
        if slot.spec.nodes:
            with socket.create_server((HOST, 0)) as free:
                known[MEETING] = f"{HOST}:{free.getsockname()[1]}"
        if slot.spec.kind is Kind.BOOTSTRAP and slot.facts:
            known[PORT] = str(slot.facts["grpc"]).rpartition(":")[2]
            known[HTTP_PORT] = str(urlsplit(str(slot.facts["http"])).port)
        if slot.spec.kind is Kind.GATEWAY and slot.facts:
            known[PORT] = str(urlsplit(str(slot.facts["http"])).port)
        return known

    async def _follow(self) -> None:
        """Pass on the news of the bootstrap servers."""
        await self._bootstraps_known()
        watch = WatchClient([str(slot.facts["grpc"]) for slot in self._bootstraps])
        await watch.start()
        self._watch = watch
        version = -1
        while True:
            version = (await watch.changed(version)).version
            self._tell()

    async def _stop_children(self) -> None:
        """Ask gateway and workers to end, then the bootstrap servers; kill the process groups of those that do not."""
        for last in (False, True):
            slots = [slot for slot in self.slots.values() if (slot.spec.kind is Kind.BOOTSTRAP) is last]
            children = [slot.child for slot in slots if slot.child is not None and slot.running]
            if not children:
                continue
            for child in children:
                child.signal(signal.SIGTERM)
            ends = [asyncio.create_task(child.ended()) for child in children]
            await asyncio.wait(ends, timeout=STOP_SECONDS)
            for child in children:
                child.kill_group()
            await asyncio.gather(*ends)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _death(slot: Slot) -> BatonError:
    """The error for a process that is not started again, with what it said last."""
    said = "\n".join(slot.child.last_lines) if slot.child is not None else ""
    kind = ConfigError if slot.last_status == CONFIG_STATUS else InternalError
    when = "ended" if slot.facts else "did not start"
    return kind(f"{slot.spec.name} {when} (exit status {slot.last_status})" + (f":\n{said}" if said else ""))
