"""A simulated fleet that the operator's autoscaler drives, and an oracle that knows what will be asked of it."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from baton_operator.autoscaling import PERIOD, Bounds, Fleet, Memory, Targets, decide
from baton_operator.planner import WorkerReport
from baton_serving.gateway.admission.door import DoorConfig
from baton_serving.gateway.simulate.fleet import Shape, Simulation
from baton_serving.gateway.simulate.report import Account, Objective
from baton_serving.gateway.simulate.trace import Trace, TraceRequest
from baton_serving.gateway.simulate.worker import Costs, SimWorker

# A worker that is slow enough for a fleet of a dozen to be busy with few requests.
COSTS = Costs(
    prefill_token=200e-6,
    decode_step=0.018,
    decode_context_token=0.7e-6,
    kv_tokens=48_000,
    prefill_batch_tokens=4096,
)
TARGETS = Targets(ttft=4.0, tpot=0.05)
START_SECONDS = 60.0  # until a new worker is ready
ROLES = ("prefill", "decode")

Controller = Callable[[float, Fleet], Mapping[str, int]]


Sizes = Callable[[float], tuple[tuple[int, int], tuple[int, int]]]


def usual(at: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Fewest and most tokens of a prompt, and of an answer."""
    return (300, 3500), (50, 400)


def traffic(seconds: float, rate: Callable[[float], float], seed: int, sizes: Sizes = usual) -> Trace:
    """Requests at `rate` a second at a time, of so many tokens."""
    rng, requests, at, peak = random.Random(seed), [], 0.0, max(rate(n * 10.0) for n in range(int(seconds / 10) + 1))
    while (at := at + rng.expovariate(peak)) < seconds:
        if rng.random() < rate(at) / peak:
            prompt, answer = sizes(at)
            requests.append(TraceRequest(at, rng.randint(*prompt), rng.randint(*answer), ()))
    return Trace(tuple(requests), 16)


def day(seconds: float, low: float, high: float, surge: float = 1.0) -> Callable[[float], float]:
    """From low to high and back; on the way up it becomes `surge` times as much within five minutes, for a while."""

    def rate(at: float) -> float:
        wave = low + (high - low) * (1 - math.cos(2 * math.pi * at / seconds)) / 2
        begin, end, ramp = 0.3 * seconds, 0.6 * seconds, 300.0
        part = min(1.0, max(0.0, (at - begin) / ramp)) * min(1.0, max(0.0, (end - at) / ramp))
        return wave * (1 + (surge - 1) * part)

    return rate


@dataclass
class Outcome:
    """`counts` holds (seconds, workers wanted) by role; `gap` the time without a serving set."""

    good: float
    requests: int
    refused: int
    replica_seconds: float
    counts: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    gap: float = 0.0

    def reversals(self, role: str, within: float = 600.0) -> int:
        """Most changes of direction within so many seconds."""
        turns: list[float] = []
        last = 0
        for (_, before), (at, after) in zip(self.counts[role], self.counts[role][1:], strict=False):
            step = (after > before) - (after < before)
            if step and last and step != last:
                turns.append(at)
            last = step or last
        return max((sum(begin <= turn < begin + within for turn in turns) for begin in turns), default=0)


class ScaledFleet:
    """One run. Wanted workers join `START_SECONDS` later and are paid for from the first of these to their last."""

    def __init__(
        self,
        trace: Trace,
        controller: Controller,
        start: Mapping[str, int],
        worker_wait: float = 1.0,
        *,
        flips: bool = False,
    ) -> None:
        self._flips = flips
        self.flipped = 0
        self._account = Account(Objective(TARGETS.ttft, TARGETS.tpot))
        self._controller = controller
        self._end = trace.requests[-1].at
        shape = Shape(start["prefill"], start["decode"], COSTS, events=False)
        door = DoorConfig(None, 0, 0.0)
        self._fleet = Simulation(trace, shape, "least_load", "least_load", door, self._account.add, worker_wait)
        self._wanted = dict(start)
        self._coming: dict[str, int] = dict.fromkeys(ROLES, 0)  # asked for and not ready
        self._cancelled: dict[str, int] = dict.fromkeys(ROLES, 0)  # of these, no longer wanted
        self._leaving: list[SimWorker] = []
        self._paid = self._gap = 0.0
        self._counts: dict[str, list[tuple[float, int]]] = {role: [(0.0, start[role])] for role in ROLES}

    def run(self) -> Outcome:
        self._fleet.at(PERIOD, self._tick)
        self._fleet.run()
        refused = self._account.count - len(self._account.ttfts)
        good = self._account.good / max(1, self._account.count)
        return Outcome(good, self._account.count, refused, self._paid, self._counts, self._gap)

    def _ready(self, role: str) -> tuple[SimWorker, ...]:
        return self._fleet.prefills if role == "prefill" else self._fleet.decodes

    def _tick(self, now: float) -> None:
        self._fleet.settle(now)
        self._leaving = [worker for worker in self._leaving if worker.running]
        standing = sum(len(self._ready(role)) + self._coming[role] - self._cancelled[role] for role in ROLES)
        self._paid += PERIOD * (standing + len(self._leaving))
        if all(self._wanted.values()) and self._started and not all(self._ready(role) for role in ROLES):
            self._gap += PERIOD
        reports = [_report(worker, role) for role in ROLES for worker in self._ready(role)]
        wanted = self._controller(now, Fleet(dict(self._wanted), reports, self._fleet.waiting))
        if self._flips:
            self._flip(wanted, now)
        for role in ROLES:
            self._bring_about(role, wanted[role], now)
        if now < self._end:
            self._fleet.at(now + PERIOD, self._tick)

    @property
    def _started(self) -> bool:
        return not any(self._coming.values())

    def _flip(self, wanted: Mapping[str, int], now: float) -> None:
        """As the operator does: what one role has too many takes the other's place at once."""
        for role, other in (ROLES, ROLES[::-1]):
            while (
                wanted[role] < self._wanted[role] and wanted[other] > self._wanted[other] and len(self._ready(role)) > 1
            ):
                self._fleet.change_role(min(self._ready(role), key=lambda one: one.running), now)
                self.flipped += 1
                for one, step in ((role, -1), (other, 1)):
                    self._wanted[one] += step
                    self._counts[one].append((now, self._wanted[one]))

    def _bring_about(self, role: str, count: int, now: float) -> None:
        more = count - self._wanted[role]
        if more:
            self._wanted[role] = count
            self._counts[role].append((now, count))
        for _ in range(more):
            self._coming[role] += 1
            self._fleet.at(now + START_SECONDS, lambda then: self._join(role, then))
        for _ in range(-more):
            if self._coming[role] > self._cancelled[role]:  # as Kubernetes does: those that are not ready go first
                self._cancelled[role] += 1
            else:
                worker = min(self._ready(role), key=lambda one: one.running)
                self._fleet.leave(worker, now)
                self._leaving.append(worker)

    def _join(self, role: str, now: float) -> None:
        self._coming[role] -= 1
        if self._cancelled[role]:
            self._cancelled[role] -= 1
        else:
            self._fleet.join(role, now)


def _report(worker: SimWorker, role: str) -> WorkerReport:
    return WorkerReport(
        id=worker.id,
        role=role,
        state="ready",
        weights=worker.weight_digest,
        queued_tokens=worker.queued_tokens,
        free_pages=max(0, COSTS.kv_tokens - worker.used_tokens) // COSTS.page_size,
        total_pages=COSTS.kv_tokens // COSTS.page_size,
        prompt_tokens=worker.prompt_tokens,
        prompt_seconds=worker.prompt_seconds,
        answer_tokens=worker.answer_tokens,
        answer_seconds=worker.answer_seconds,
    )


class Autoscaler:
    """The operator's own planner, as the operator calls it."""

    def __init__(self, targets: Targets = TARGETS, least: int = 1, most: int = 100) -> None:
        self._targets = targets
        self._bounds = {role: Bounds(least, most) for role in ROLES}
        self._memory = Memory()

    def __call__(self, now: float, fleet: Fleet) -> Mapping[str, int]:
        decision, self._memory = decide(self._memory, fleet, self._targets, self._bounds, now)
        return decision.wanted


class Oracle:
    """Knows every request beforehand and what it costs, and so has workers ready just when they are needed.

    `use` is the part of its time that a prefill worker computes, `fill` the part of the KV that decode workers hold
    when a token takes as long as it may. The best pair of these is found by trying.
    """

    def __init__(self, trace: Trace, use: float, fill: float) -> None:
        self._use, self._fill = use, fill
        bins = int(trace.requests[-1].at / PERIOD) + 2
        work, held = [0.0] * bins, [0.0] * bins
        for request in trace.requests:
            index = int(request.at / PERIOD)
            work[index] += (request.prompt_tokens * COSTS.prefill_token + COSTS.prefill_step / 2) / PERIOD
            tokens, stays = request.prompt_tokens + request.output_tokens, request.output_tokens * TARGETS.tpot * 0.9
            for later in range(index, min(bins, int((request.at + stays) / PERIOD) + 1)):
                part = min(request.at + stays, (later + 1) * PERIOD) - max(request.at, later * PERIOD)
                held[later] += tokens * part / PERIOD
        self._work, self._held = _smooth(work), _smooth(held)
        self._tokens = (TARGETS.tpot - COSTS.decode_step) / COSTS.decode_context_token

    def __call__(self, now: float, fleet: Fleet) -> Mapping[str, int]:
        return self.at(now)

    def replica_seconds(self) -> float:
        """What it asks for, without the time that workers take to end their requests."""
        return PERIOD * sum(sum(self.at(index * PERIOD).values()) for index in range(len(self._work) - 1))

    def at(self, now: float) -> dict[str, int]:
        """The most that is needed from now until workers asked for at the next look would be ready."""
        first = min(len(self._work) - 1, int(now / PERIOD))
        soon = slice(first, first + int(START_SECONDS / PERIOD) + 2)
        return {
            "prefill": max(1, math.ceil(max(self._work[soon]) / self._use)),
            "decode": max(1, math.ceil(max(self._held[soon]) / (self._tokens * self._fill))),
        }


def _smooth(values: list[float], width: int = 8) -> list[float]:
    """Means over `width` values around each."""
    window: deque[float] = deque(values[: width // 2], maxlen=width)
    smooth = []
    for index in range(len(values)):
        if index + width // 2 < len(values):
            window.append(values[index + width // 2])
        smooth.append(sum(window) / len(window))
    return smooth
