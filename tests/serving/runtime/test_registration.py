"""A worker's word at the bootstrap server."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import cast

import msgspec

from baton_bootstrap.records import Beat, Role, State, Worker
from baton_bootstrap.registry import Registry
from baton_bootstrap.wire.codec import MAX_BUSY_SECONDS, beat_from_wire, beat_to_wire
from baton_serving.config import ResolvedConfig, config_from_values
from baton_serving.runtime.liveness import Liveness
from baton_serving.runtime.messages import WorkerState
from baton_serving.runtime.registration import Registration
from baton_serving.runtime.tokenizer_manager import TokenizerManager

WORKER = Worker(id="w", incarnation="w1", epoch=1, role=Role.PREFILL, http_url="http://w", model="m", weight_digest="d")


class Reporter:
    """A worker's registration, and the scheduler's reports that it speaks from."""

    def __init__(self, worker: Worker = WORKER) -> None:
        given = config_from_values({"model_path": "m"})
        config = SimpleNamespace(bootstrap_addrs=(("127.0.0.1", 1),), given=given)
        self._manager = SimpleNamespace(stats={}, links={}, liveness=Liveness())
        manager = cast(TokenizerManager, self._manager)
        self.registration = Registration(cast(ResolvedConfig, config), worker, manager)

    def report(self, tick: int, busy: float) -> None:
        state = WorkerState(tick=tick, stats={"tick": tick}, busy_until=time.monotonic() + busy if busy else 0.0)
        self._manager.liveness.observe(state)
        self._manager.stats = state.stats

    def beat(self) -> Beat:
        """As the server gets it."""
        return beat_from_wire(beat_to_wire(self.registration._beat()))


def test_a_declared_long_step_is_no_standstill() -> None:
    now = [0.0]
    registry, worker = Registry(instance="i", lease=3.0, clock=lambda: now[0]), Reporter()
    worker.report(1, 0.0)
    lease = registry.register(WORKER, worker.beat())

    def state_after(seconds: float) -> State:
        now[0] += seconds
        registry.beat(lease, worker.beat())
        return registry.find("w")[0].status.state

    worker.report(2, 60.0)
    assert [state_after(2.0) for _ in range(5)] == [State.READY] * 5
    worker.report(2, 0.0)
    assert State.STALLED in [state_after(2.0) for _ in range(60)]
    worker.report(3, 0.0)
    assert state_after(2.0) is State.READY


def test_a_step_of_hours_is_declared_as_far_as_the_server_believes() -> None:
    worker = Reporter()
    worker.report(1, 10 * MAX_BUSY_SECONDS)
    assert worker.beat().busy_seconds == MAX_BUSY_SECONDS


def test_a_worker_takes_another_role_and_its_own_again() -> None:
    registration = Reporter(msgspec.structs.replace(WORKER, control="tcp://w:1")).registration
    asked = [registration.take_role(role) for role in (Role.DECODE, Role.BOTH, None)]
    assert asked == [Role.DECODE, Role.BOTH, Role.PREFILL]
    assert registration._client.worker.role is Role.PREFILL
    whole = Reporter(msgspec.structs.replace(WORKER, role=Role.BOTH)).registration
    assert whole.take_role(Role.DECODE) is Role.BOTH  # without a handoff it has no leg to offer


def test_renewed_keys_are_told() -> None:
    registration = Reporter().registration
    registration.be_reached("tcp://w:2", "k" * 40)
    known = registration._client.worker
    assert (known.control, known.control_key) == ("tcp://w:2", "k" * 40)
    registration.be_reached("tcp://w:2", "k" * 40)
    assert registration._client.worker is known
