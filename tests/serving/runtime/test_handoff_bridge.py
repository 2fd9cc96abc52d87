"""A running request that moves between two workers in this process, over the fake transport and with real KV."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.local_worker import Answer, LocalWorker

from baton_serving.handoff.backends.fake import FakeFabric
from baton_serving.handoff.layout import PROTOCOL_VERSION, PeerDescriptor, rank_slice
from baton_serving.handoff.protocol import Ack, decode
from baton_serving.handoff.ranks import RankCommand
from baton_serving.handoff.rim import Limits, PeerAddress
from baton_serving.handoff.service import HandoffService
from baton_serving.runtime.handoff_bridge import HandoffBridge
from baton_serving.runtime.handoff_ranks import rank_transfer
from baton_serving.runtime.messages import GenerateInput, HandoffTicket, TokenOutput
from baton_serving.runtime.scheduler_process import request_maker
from baton_serving.sampling.params import SamplingParams

BATON_TINY = Path(__file__).parents[3] / "examples" / "models" / "baton-tiny"
LIMITS = Limits(join=0.3, ack=0.3)
TOKENS = 60
PROMPT = [7, 99, 23, 512, 8, 301] * 9


class ForgetfulService(HandoffService):
    """Its receipts get lost while `forgets` is set."""

    forgets = False

    def send(self, connection: int, frame: bytes) -> None:
        if not (self.forgets and isinstance(decode(frame), Ack)):
            super().send(connection, frame)


class Side:
    """A worker whose loop a test turns by hand, with its handoff."""

    def __init__(self, name: str, mode: str, fabric: FakeFabric, registry: dict[str, PeerAddress]) -> None:
        self.worker = LocalWorker(BATON_TINY, max_total_tokens=2000)
        self.name = name
        self._live = registry
        rank = self.worker.rank
        blank = PeerDescriptor(
            version=PROTOCOL_VERSION,
            worker=name,
            incarnation=f"{name}-1",
            weights=rank.loaded.digest,
            engine="e",
            layout=rank.loaded.kv_layout,
            tp_size=1,
            pp_size=1,
            backend="fake",
            epoch=0,
            ranks=(rank_slice(rank.loaded.kv_layout, 1, 0),),
        )
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.service = ForgetfulService(
            blank, self._command, registry.get, lambda: os.eventfd_write(self._wake, 1), limits=LIMITS
        )
        self.transfer = rank_transfer(rank, fabric.backend, self.service.report, f"{name}-1", LIMITS.write)
        self.service.start()
        registry[name] = PeerAddress(self.service.endpoint, f"{name}-1")
        self.bridge = HandoffBridge(self.service, self.worker.scheduler, mode, self._wake, self._incarnation, name)
        self._make = request_maker(rank.loaded.info, lambda: rank.loaded.digest)

    def _command(self, rank: int, command: RankCommand) -> None:
        self.transfer.submit(command)

    def _incarnation(self, worker: str) -> str:
        return self._live[worker].incarnation if worker in self._live else ""

    def ask(self, rid: str, ticket: HandoffTicket | None = None, output: list[int] | None = None) -> Answer:
        params = SamplingParams(max_new_tokens=TOKENS, temperature=0.0, ignore_eos=True)
        message = GenerateInput(rid, PROMPT, params, output_ids=output or [], handoff=ticket)
        request = self._make(message)
        if not self.bridge.admit(message, request):
            self.worker.scheduler.add(request)
        return self.worker._answers.setdefault(rid, Answer())

    def turn(self) -> None:
        self._take(self.bridge.poll(0))
        self.worker.turn()
        self.bridge.planned()
        self.bridge.booked()
        self._take(self.worker.scheduler.take_outputs())
        for rid, answer in self.worker._answers.items():
            if answer.finish is not None or answer.failure is not None:
                self.bridge.ended(TokenOutput(rid=rid, finish=answer.finish, failure=answer.failure))

    def _take(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            self.worker._answers[output.rid].take(output)

    def close(self) -> None:
        self.transfer.close()
        self.service.close()
        os.close(self._wake)


@pytest.fixture(scope="module")
def sides() -> Iterator[dict[str, Side]]:
    fabric = FakeFabric()
    registry: dict[str, PeerAddress] = {}
    made = {name: Side(name, mode, fabric, registry) for name, mode in (("a", "prefill"), ("b", "decode"))}
    yield made
    for side in made.values():
        side.close()


def until(condition: Callable[[], bool], *sides: Side) -> None:
    """Turn the workers' loops until it holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        for side in sides:
            side.turn()


def at_rest(*sides: Side) -> bool:
    return all(side.worker.scheduler.idle and not side.service.stats().open_sends for side in sides)


def undisturbed(side: Side) -> list[int]:
    answer = side.ask(f"whole-{time.monotonic_ns()}")
    until(lambda: answer.finish is not None, side)
    return answer.token_ids


def stand_still(source: Side, rid: str, transfer_id: str) -> tuple[Answer, list[int]]:
    """A request in the middle of its answer, taken off the batch: its stream, and the tokens told to the caller."""
    stream = source.ask(rid)
    until(lambda: len(stream.token_ids) >= 5, source)
    move = source.bridge.move(rid, transfer_id)
    until(lambda: move.done, source)
    assert move.error is None
    return stream, list(move.result["output_ids"])


def test_after_a_lost_receipt_both_go_on_and_the_caller_ends_one(sides: dict[str, Side]) -> None:
    source, target = sides["a"], sides["b"]
    wanted = undisturbed(target)
    stream, told = stand_still(source, "lost", "t-lost")
    target.service.forgets = True
    second = target.ask("second", HandoffTicket(transfer_id="t-lost", peer="a"), told)
    until(lambda: len(second.token_ids) > 2 and len(stream.token_ids) > len(told) + 2, source, target)
    target.service.forgets = False

    target.worker.scheduler.abort("second")
    target.bridge.aborted("second", "aborted")
    until(lambda: stream.finish is not None and at_rest(source, target), source, target)

    assert stream.finish is not None
    assert (stream.finish.kind, stream.token_ids) == ("length", wanted)
    assert told + second.token_ids == wanted[: len(told) + len(second.token_ids)]
    for side in (source, target):
        side.worker.scheduler.check()


def test_a_ticket_that_names_the_legs_is_followed_whatever_the_workers_were_started_for(sides: dict[str, Side]) -> None:
    source, target = sides["b"], sides["a"]
    wanted = undisturbed(target)
    ticket = HandoffTicket(transfer_id="t-other-way", peer="b", receiver="a")
    sent, stream = source.ask("sent", ticket), target.ask("received", ticket)
    until(lambda: stream.finish is not None and sent.finish is not None, source, target)
    assert sent.finish is not None
    assert sent.finish.kind == "handoff"
    assert stream.token_ids == wanted
    until(lambda: at_rest(source, target), source, target)
    for side in (source, target):
        side.worker.scheduler.check()


def test_a_request_whose_target_never_asks_goes_on(sides: dict[str, Side]) -> None:
    source = sides["a"]
    wanted = undisturbed(source)
    stream, told = stand_still(source, "unasked", "t-unasked")
    assert stream.token_ids == told
    until(lambda: stream.finish is not None and at_rest(source), source)
    assert stream.finish is not None
    assert (stream.finish.kind, stream.token_ids) == ("length", wanted)
    source.worker.scheduler.check()


def test_a_prefill_whose_receiver_is_gone_ends_at_once(sides: dict[str, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have waited for its pages to be asked for; one whose receiver never was registered still does."""
    source = sides["a"]
    monkeypatch.setattr(source.service._core.sends, "_limits", Limits())  # 30 s
    source._live["c"] = PeerAddress("tcp://127.0.0.1:9", "c-1")
    orphan = source.ask("orphan", HandoffTicket(transfer_id="t-orphan", receiver="c"))
    until(lambda: source.bridge._sending["t-orphan"].receiver == "c-1", source)
    waiting = source.ask("waiting", HandoffTicket(transfer_id="t-waiting", receiver="nobody yet"))
    del source._live["c"]
    until(lambda: orphan.failure is not None, source)
    assert orphan.failure is not None
    assert (orphan.failure.code, orphan.failure.message) == ("unavailable", "decode worker 'c' is gone")
    assert (waiting.finish, waiting.failure) == (None, None)
    source.worker.scheduler.abort("waiting")
    source.bridge.aborted("waiting", "aborted")
    until(lambda: at_rest(source), source)
    source.worker.scheduler.check()
