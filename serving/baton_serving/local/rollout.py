"""Rolls a local service over to what its manifest says by now: the planner decides, this carries it out.

Workers hear what they are to serve through the bootstrap server and report there how far they are. A change of weights
alone is made where they run, when the manifest says `InPlace`; anything else takes new processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import aiohttp
import msgspec

from baton_bootstrap.client import assign
from baton_bootstrap.records import Assignment, Goal
from baton_operator.api import InferenceService
from baton_operator.rollout import Memory, Order, Phase, Policy, Seen, Step, Strategy, Target, policy_of, step
from baton_operator.rollout.health import Counts, HealthBook, ask_probe, health_of
from baton_serving.errors import InvalidRequest
from baton_serving.local.fleet_view import entry_of, seen_workers
from baton_serving.local.plan import Kind, WorkerPlan
from baton_serving.local.supervisor import Supervisor

log = logging.getLogger(__name__)

TURN = 0.2  # seconds between two looks when nothing happens
REFRESH = 1.0  # seconds after which assignments are sent again: a bootstrap server may be new
KEPT_NEWS = 200
_GOALS = {Order.KEEP: Goal.SERVE, Order.STOP: Goal.SERVE, Order.STAGE: Goal.STAGE, Order.SWITCH: Goal.SWITCH}


class News(msgspec.Struct, frozen=True):
    """Something that happened, at unix time `at`."""

    at: float
    phase: str
    message: str


class RolloutStatus(msgspec.Struct, frozen=True):
    """What `baton rollout status` shows. `workers` maps names to what they serve and how far they are."""

    phase: str
    version: str
    stable: str
    failed: str
    message: str
    workers: dict[str, str]
    news: list[News]


@dataclass
class _Version:
    """`digest` is that of its weights, once a worker has read them."""

    plan: WorkerPlan
    policy: Policy
    probe: tuple[str, str] | None
    digest: str = ""


class LocalRollout:
    """`run` beside the supervisor. `change` takes a new manifest in; the other calls steer what is under way."""

    def __init__(self, supervisor: Supervisor, plan: WorkerPlan, service: InferenceService) -> None:
        self._supervisor = supervisor
        self._versions = {plan.version: _Version(plan, policy_of(service), probe_of(service))}
        self._wanted = plan.version
        self._serves = {name: plan.version for name, s in supervisor.slots.items() if s.spec.kind is Kind.WORKER}
        self.memory = Memory()
        self._paused = False
        self._admitted: frozenset[str] = frozenset()
        self._health = HealthBook()
        self._counts: Mapping[str, Counts] = {}
        self._probe: dict[str, bool] = {}
        self._probing: asyncio.Task[None] | None = None
        self._sent: tuple[float, Mapping[str, Assignment]] = (0.0, {})
        self._changed = asyncio.Event()
        self.news: deque[News] = deque(maxlen=KEPT_NEWS)
        self.on_news: Callable[[News], None] = lambda news: None

    def change(self, plan: WorkerPlan, service: InferenceService) -> None:
        """Roll over to what `service` says now: another version, other numbers, another policy."""
        known = self._versions.get(plan.version)
        digest = "" if known is None else known.digest
        self._versions[plan.version] = _Version(plan, policy_of(service), probe_of(service), digest)
        self._wanted = plan.version
        self._changed.set()

    def pause(self) -> None:
        """Let no further worker change."""
        self._paused = True
        self._changed.set()

    def resume(self) -> None:
        """Go on after `pause`, or after a canary has proved itself."""
        self._paused = False
        self.memory = replace(self.memory, promoted=True)
        self._changed.set()

    def undo(self) -> None:
        """Go back to the version that was last rolled out whole (InvalidRequest when it is the wanted one)."""
        if self.memory.stable == self._wanted:
            raise InvalidRequest("there is nothing to undo: no change is under way")
        stable = self._versions[self.memory.stable]
        self._versions[self.memory.stable] = replace(stable, policy=self._versions[self._wanted].policy)
        self._wanted = self.memory.stable
        self._paused = False
        self._changed.set()

    def status(self) -> RolloutStatus:
        workers = seen_workers(self._supervisor, self._serves)
        message = self.news[-1].message if self.news else ""
        return RolloutStatus(
            phase=self.memory.phase if self.memory.version == self._wanted else Phase.STAGING,
            version=self._wanted,
            stable=self.memory.stable,
            failed=self.memory.failed,
            message=message,
            workers={w.id: f"{w.version} {w.stage}{'' if w.ready else ', not ready'}" for w in workers},
            news=list(self.news),
        )

    async def run(self) -> None:
        """Plan and act until cancelled, once the service is ready."""
        await self._supervisor.ready()
        async with aiohttp.ClientSession() as session:
            while not self._supervisor.stopping:
                await self._turn(session)
                await self._pause_a_moment()

    async def _turn(self, session: aiohttp.ClientSession) -> None:
        wanted = self._versions[self._wanted]
        self._settle()
        busy = self.memory.phase not in (Phase.DONE, Phase.FAILED) or self.memory.version != self._wanted
        if busy:
            await self._look(session)
        policy = replace(wanted.policy, paused=wanted.policy.paused or self._paused)
        if policy.strategy is Strategy.IN_PLACE and not self._only_weights_differ():
            policy = replace(policy, strategy=Strategy.SURGE)
        planned = step(Target(self._wanted, wanted.plan.counts), policy, self._seen(), self.memory)
        self.memory = planned.memory
        self._tell(planned)
        await self._act(planned, session)

    def _seen(self) -> Seen:
        probe = self._probe.get(self.memory.goal)
        counts: dict[str, list[Counts]] = {version: [] for version in self._serves.values()}
        for name, version in self._serves.items():
            counts[version] += [self._counts[name]] if name in self._counts else []
        health = {version: health_of(found, probe) for version, found in counts.items()}
        known = {one.digest: version for version, one in self._versions.items() if one.digest}
        admitted = frozenset(known[digest] for digest in self._admitted if digest in known)
        if not self._admitted:  # nobody asked yet: nothing is under way
            admitted = frozenset(self._serves.values())
        return Seen(seen_workers(self._supervisor, self._serves), admitted, time.monotonic(), health)

    def _settle(self) -> None:
        """Note what workers serve now, by their digests and reports, and start them so when they come back."""
        for name, slot in self._supervisor.slots.items():
            if slot.spec.kind is not Kind.WORKER:
                continue
            entry = entry_of(slot, self._supervisor)
            if entry is None:
                continue
            progress, digest = entry.status.progress, entry.worker.weight_digest
            goal = self._versions.get(progress.revision)
            if goal is not None and goal.digest == digest and self._serves[name] != progress.revision:
                self._serves[name] = progress.revision
                slot.spec = goal.plan.spec(slot.spec.role, int(name.rpartition("-")[2]))
            serves = self._versions[self._serves[name]]
            serves.digest = serves.digest or digest
            if goal is not None and not goal.digest and progress.phase == "staged":
                goal.digest = progress.digest

    def _only_weights_differ(self) -> bool:
        settings = {self._versions[version].plan.settings for version in {*self._serves.values(), self._wanted}}
        return len(settings) == 1

    async def _look(self, session: aiohttp.ClientSession) -> None:
        """What the gateway sends requests to, and how they fare."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(f"{self._supervisor.figures_url}/v1/baton/versions") as response:
                versions: dict[str, dict[str, int]] = await response.json()
            self._admitted = frozenset(digest for shares in versions.values() for digest in shares)
        workers = [(n, e.worker.incarnation, e.worker.http_url) for n, e in self._supervisor.view.entries.items()]
        self._counts = await self._health.look(session, workers)

    async def _act(self, planned: Step, session: aiohttp.ClientSession) -> None:
        for name, order in planned.orders.items():
            if order is Order.STOP and name in self._supervisor.slots:
                self._supervisor.remove(name)
        for (role, version), count in planned.counts.items():
            there = [n for n, v in self._serves.items() if v == version and self._role(n) == role]
            leaving = [n for n in there if planned.orders.get(n) is Order.STOP]
            for _ in range(count - len(there) + len(leaving)):
                self._start(role, version)
        for name in [name for name in self._serves if name not in self._supervisor.slots]:
            del self._serves[name]
        await self._assign(planned)
        if planned.probe and (self._probing is None or self._probing.done()):
            self._probing = asyncio.create_task(self._ask(planned.probe, session))

    def _role(self, name: str) -> str:
        return name.rpartition("-")[0]

    def _start(self, role: str, version: str) -> None:
        index = 0
        while f"{role}-{index}" in self._supervisor.slots:
            index += 1
        self._supervisor.add(self._versions[version].plan.spec(role, index))
        self._serves[f"{role}-{index}"] = version

    async def _assign(self, planned: Step) -> None:
        """Tell the workers, when it is news or was told a while ago."""
        goal = self._versions[planned.version]
        told = {}
        for name, order in planned.orders.items():
            told[name] = Assignment(
                revision=planned.version,
                model=goal.plan.source,
                model_revision=goal.plan.source_revision,
                digest=goal.digest,
                goal=_GOALS[order],
                whole=name in planned.whole,
                share=planned.shares.get(self._serves.get(name, ""), 100),
            )
        at, before = self._sent
        if told != before or time.monotonic() - at > REFRESH:
            self._sent = time.monotonic(), told
            addresses = [str(s.facts["grpc"]) for s in self._supervisor.slots.values() if "grpc" in s.facts]
            await assign(addresses, told)

    async def _ask(self, version: str, session: aiohttp.ClientSession) -> None:
        """Ask a worker of `version` the probe."""
        probe = self._versions[self._wanted].probe
        urls = [
            entry.worker.http_url
            for name, entry in self._supervisor.view.entries.items()
            if self._serves.get(name) == version and entry.ready
        ]
        if probe is None or not urls:
            return
        prompt, expected = probe
        text = await ask_probe(session, urls[0], prompt)
        self._probe[version] = expected in text
        if expected not in text:
            log.warning("the probe was answered %r, which does not contain %r", text[:200], expected)

    def _tell(self, planned: Step) -> None:
        phase, message = str(planned.memory.phase), planned.message
        if not self.news or (self.news[-1].phase, self.news[-1].message) != (phase, message):
            news = News(time.time(), phase, message)
            self.news.append(news)
            self.on_news(news)

    async def _pause_a_moment(self) -> None:
        waits = [asyncio.create_task(self._changed.wait()), asyncio.create_task(self._supervisor.changed())]
        await asyncio.wait(waits, timeout=TURN, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        self._changed.clear()


def probe_of(service: InferenceService) -> tuple[str, str] | None:
    probe = service.spec.rollout.gates.probe
    return None if probe is None else (probe.prompt, probe.expect)
