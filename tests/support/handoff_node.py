"""One simulated worker of `handoff_world`: a real core and real rank executors under a model scheduler.

The scheduler owns pages and knows what every one of them must hold. A broken promise is a `Violation`: a page that
changed under its owner, a page freed twice or lost, a request that ended twice or never.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from baton_serving.handoff.backends.base import HostMemory, TransferBackend
from baton_serving.handoff.backends.fake import FakeBackend
from baton_serving.handoff.events import (
    Arrived,
    Begun,
    Delivered,
    HandoffEvent,
    HandoffFailure,
    ReceiveFailed,
    ReceiveQuiet,
    SendFailed,
    SendQuiet,
)
from baton_serving.handoff.layout import PeerDescriptor, rank_slice
from baton_serving.handoff.protocol import Key, PageSpan
from baton_serving.handoff.ranks import RankCommand, RankExecutor
from baton_serving.handoff.rim import Limits, PeerAddress
from baton_serving.kv.layout import KVGroup, KVLayout

if TYPE_CHECKING:
    from support.handoff_world import World

LAYOUT = KVLayout(
    page_size=1,
    kv_heads=2,
    k_dim=4,
    v_dim=4,
    dtype="float8_e4m3fn",
    groups=(KVGroup((0, 1)), KVGroup((2, 3), window=2)),
)
LIMITS = Limits(
    heartbeat=0.25,
    lease=1.5,
    stall=2.5,
    connect=2.0,
    early_join=4.0,
    join=4.0,
    pages=6.0,
    ack=3.0,
    write=3.0,
    grace=0.5,
    move=1.0,
    transfer=20.0,
)
PAGES = 24
TURN = 0.125


class Violation(AssertionError):
    """A promise of the handoff was broken."""


@dataclass(frozen=True)
class Request:
    """A request that worker `source` computes and worker `target` takes over. Times are in seconds from the start."""

    at: float
    source: int
    target: int
    pages: int
    chunks: int
    join_lag: float = 0.0  # of the receiver behind the sender; negative: the receiver is first
    compute: float = 0.05  # per chunk
    prefix: int = 0  # pages that the receiver holds already
    abort_source: float | None = None
    abort_target: float | None = None


@dataclass(frozen=True)
class Fault:
    """`kill` (and restart after `lasts`), `hang` (SIGSTOP for `lasts`), `freeze` (scheduler only), `cut` (the control
    connections of the worker end), `noise` (random bytes on its socket), `lie` (stale messages replayed)."""

    at: float
    kind: str
    worker: int
    lasts: float = 1.0


@dataclass(frozen=True)
class Plan:
    workers: list[int]  # tensor parallel size of each
    requests: list[Request]
    faults: list[Fault]
    trouble: float  # probability that a posted write goes wrong
    loss: float  # probability that a control message is lost
    seed: int
    alone: bool = False  # peers write by themselves, as over NVLink: closing an engine keeps nobody out


class Ledger:
    """The pages of one worker incarnation: who owns them and what they must hold."""

    def __init__(self, tp: int) -> None:
        shape = rank_slice(LAYOUT, tp, 0).shape
        self.pools: list[npt.NDArray[np.uint8]] = [np.zeros((PAGES, shape.page_bytes), np.uint8) for _ in range(tp)]
        self.free = list(range(PAGES - 1, 0, -1))
        self.owner: dict[int, str] = {}
        self.expected: dict[int, int] = {}

    def take(self, count: int, owner: str) -> list[int] | None:
        if len(self.free) < count:
            return None
        pages = [self.free.pop() for _ in range(count)]
        for page in pages:
            self.owner[page] = owner
        return pages

    def write(self, page: int, content: int) -> None:
        """Our own launched step writes the page."""
        self.expected[page] = content
        for pool in self.pools:
            pool[page] = content

    def expect(self, page: int, content: int) -> None:
        """The page arrived: from now on nobody but us may change it."""
        self.expected[page] = content
        self.check(page)

    def check(self, page: int) -> None:
        content = self.expected.get(page)
        if content is None:
            return
        for rank, pool in enumerate(self.pools):
            if not (pool[page] == content).all():
                found = sorted(set(pool[page].tolist()))
                raise Violation(f"page {page} of rank {rank} ({self.owner[page]}) holds {found}, not {content}")

    def give_back(self, pages: list[int], owner: str, check: bool = True) -> None:
        for page in pages:
            if self.owner.get(page) != owner:
                raise Violation(f"{owner} frees page {page} of {self.owner.get(page)}")
            if check:
                self.check(page)
            del self.owner[page]
            self.expected.pop(page, None)
            # Scribbled over, as the next owner would: a reader of freed pages is found out.
            for pool in self.pools:
                pool[page] = 0xEE
            self.free.insert(0, page)
            self.free.sort(reverse=True)

    def verify(self) -> None:
        if len(self.free) + len(self.owner) != PAGES - 1:
            raise Violation("pages were lost")
        for page in self.owner:
            self.check(page)


def content_of(request: int, attempt: int, page: int) -> int:
    """What page `page` of the request holds, on every rank; never 0, 0xEE or equal for neighbours."""
    return 1 + (request * 37 + attempt * 101 + page * 7) % 230


@dataclass
class Leg:
    """One side of one attempt as its scheduler sees it."""

    request: int
    attempt: int
    owner: str
    pages: dict[int, list[int]] = field(default_factory=dict)
    ended: str = ""
    quarantined: bool = False
    computing: bool = True


class Node:
    """One incarnation of a worker: its core, executors, pages and scheduler."""

    def __init__(self, world: World, index: int, birth: int) -> None:
        self.world = world
        self.index = index
        self.name = f"w{index}"
        self.incarnation = f"w{index}.{birth}"
        tp = world.plan.workers[index]
        self.tp = tp
        self.ledger = Ledger(tp)
        self.alive = True
        self.hung = False
        self.frozen_until = 0.0
        self.tick = 0
        self.sends: dict[str, Leg] = {}
        self.receives: dict[str, Leg] = {}
        self.backlog: deque[Callable[[], None]] = deque()
        slices = [rank_slice(LAYOUT, tp, rank) for rank in range(tp)]
        blank = PeerDescriptor(
            version=1,
            worker=self.name,
            incarnation=self.incarnation,
            weights="w",
            engine="e",
            layout=LAYOUT,
            tp_size=tp,
            pp_size=1,
            backend="fake",
            epoch=0,
            ranks=tuple(slices),
        )
        self.core = world.make_core(blank, NodeRim(self), LIMITS)
        self.engines: dict[str, FakeBackend] = {}
        self.executors = [
            RankExecutor(
                rank,
                slices[rank],
                HostMemory(self.ledger.pools[rank].ctypes.data, self.ledger.pools[rank].nbytes),
                self._engine,
                lambda report: self.post(lambda: self.core.report(report, world.now), lag=world.short()),
                clock=lambda: world.now,
                write_timeout=LIMITS.write,
                name=self.incarnation,
            )
            for rank in range(tp)
        ]

    def _engine(self, name: str) -> TransferBackend:
        self.engines[name] = engine = self.world.fabric.backend(name)
        engine.fenced_by_close = not self.world.plan.alone
        return engine

    def post(self, action: Callable[[], None], lag: float = 0.0) -> None:
        """Run on this incarnation's threads: not after its death, not while it hangs."""

        def run() -> None:
            if self.hung:
                self.backlog.append(run)
            elif self.alive:
                action()

        self.world.at(lag, run)

    def turn(self) -> None:
        if not self.alive:
            return
        if not self.hung:
            if self.world.now >= self.frozen_until:
                self.tick += 1
            for executor in self.executors:
                executor.poll()
            self.core.turn(self.world.now, self.tick, 0.0)
            self.ledger.verify()
        self.world.at(TURN, self.turn)

    # The model scheduler.

    def handle(self, event: HandoffEvent) -> None:
        match event:
            case Begun():
                self._reserve(event.transfer_id)
            case Arrived():
                self._arrived(event)
            case ReceiveFailed(quiet=quiet, failure=failure):
                self._ended(self.receives, event, f"failed: {failure.message}", quiet)
            case ReceiveQuiet():
                self._quiet(self.receives, event)
            case Delivered():
                self._ended(self.sends, event, "delivered", True)
            case SendFailed(quiet=quiet, failure=failure):
                self._ended(self.sends, event, f"failed: {failure.message}", quiet)
            case SendQuiet():
                self._quiet(self.sends, event)

    def _leg(self, legs: dict[str, Leg], event: HandoffEvent) -> Leg:
        leg = legs.get(f"{event.transfer_id}#{event.attempt}")
        if leg is None:
            raise Violation(f"{self.incarnation}: {event} is about nothing")
        return leg

    def _ended(self, legs: dict[str, Leg], event: HandoffEvent, how: str, quiet: bool) -> None:
        leg = self._leg(legs, event)
        if leg.ended:
            raise Violation(f"{self.incarnation}: {event.transfer_id} ended twice: {leg.ended}, then {how}")
        leg.ended = how
        if quiet:
            self._release(leg, legs is self.sends)
        else:
            leg.quarantined = True
        self.world.leg_ended(self, leg, legs is self.receives)

    def _quiet(self, legs: dict[str, Leg], event: HandoffEvent) -> None:
        leg = self._leg(legs, event)
        if not leg.quarantined:
            raise Violation(f"{self.incarnation}: {event} for a leg that is not quarantined")
        leg.quarantined = False
        self._release(leg, legs is self.sends)

    def _release(self, leg: Leg, check: bool) -> None:
        for pages in leg.pages.values():
            self.ledger.give_back([page for page in pages if page], leg.owner, check)
        leg.pages = {}

    def begin_send(self, number: int, attempt: int) -> None:
        request = self.world.plan.requests[number]
        key = Key(f"r{number}", attempt)
        leg = Leg(number, attempt, f"send {key}")
        pages = self.ledger.take(2 * request.pages, leg.owner)
        if pages is None:
            self.world.send_refused(self, leg)
            return
        leg.pages = {0: pages[: request.pages], 1: pages[request.pages :]}
        self.sends[str(key)] = leg
        self.core.open(key, self.world.now)
        self.post(partial(self._start_send, key, leg), lag=self.world.short())

    def _start_send(self, key: Key, leg: Leg) -> None:
        request = self.world.plan.requests[leg.request]
        if leg.ended:
            return
        self.core.started(key, request.pages, self.world.now)
        bounds = [round(request.pages * step / request.chunks) for step in range(request.chunks + 1)]
        for step in range(request.chunks):
            self.post(partial(self._chunk, key, leg, bounds[step], bounds[step + 1]), lag=request.compute * (step + 1))
        self.post(partial(self._finish, key, leg), lag=request.compute * request.chunks + 0.001)

    def _chunk(self, key: Key, leg: Leg, first: int, last: int) -> None:
        if leg.ended or first == last:
            return
        spans = []
        for group, pages in leg.pages.items():
            for index in range(first, last):
                self.ledger.write(pages[index], content_of(leg.request, leg.attempt, index * 2 + group))
            spans.append(PageSpan(group, first, pages[first:last]))
        self.core.chunk_ready(key, spans, self.world.now)

    def _finish(self, key: Key, leg: Leg) -> None:
        if not leg.ended:
            self.core.finish(key, str(key).encode(), self.world.now)

    def begin_receive(self, number: int, attempt: int) -> None:
        request = self.world.plan.requests[number]
        key = Key(f"r{number}", attempt)
        self.receives[str(key)] = Leg(number, attempt, f"receive {key}")
        self.core.expect(key, f"w{request.source}", self.world.now)

    def _reserve(self, transfer: str) -> None:
        number = int(transfer[1:])
        request = self.world.plan.requests[number]
        for key, leg in self.receives.items():
            if leg.request == number and not leg.ended and not leg.pages:
                count = request.pages - min(request.prefix, request.pages)
                pages = self.ledger.take(2 * count, leg.owner)
                attempt = Key(transfer, leg.attempt)
                if pages is None:
                    self.core.abort(attempt, HandoffFailure("queue_full", "no pages"), self.world.now)
                    return
                skipped = request.pages - count
                # The window kind wants its last two pages only.
                window = max(0, count - 2)
                leg.pages = {0: pages[:count], 1: [0] * window + pages[count + window :]}
                self.ledger.give_back(pages[count : count + window], leg.owner)
                spans = [PageSpan(group, skipped, held) for group, held in leg.pages.items()]
                self.core.announce(attempt, spans, skipped, self.world.now)
                assert key == str(attempt)
                return

    def _arrived(self, event: Arrived) -> None:
        leg = self._leg(self.receives, event)
        if leg.ended:
            raise Violation(f"{event.transfer_id} arrived after it had ended: {leg.ended}")
        if event.snapshot != f"{event.transfer_id}#{event.attempt}".encode():
            raise Violation("a snapshot of another request arrived")
        request = self.world.plan.requests[leg.request]
        for group, pages in leg.pages.items():
            skipped = request.pages - len(pages)
            for offset, page in enumerate(pages):
                if page:
                    self.ledger.expect(page, content_of(leg.request, leg.attempt, (skipped + offset) * 2 + group))
        leg.ended = "arrived"
        self.world.leg_ended(self, leg, True)
        # Decoding reads the pages for a while; they are compared again when it ends.
        self.post(lambda: self._release(leg, True), lag=self.world.random.uniform(0.5, 6.0))

    def abort(self, number: int) -> None:
        for attempt in range(self.world.attempts.get(number, 0) + 1):
            failure = HandoffFailure("cancelled", "the client went away")
            self.core.abort(Key(f"r{number}", attempt), failure, self.world.now)

    @property
    def idle(self) -> bool:
        stats = self.core.stats()
        return (
            not stats.open_sends
            and not stats.open_receives
            and not stats.fencing
            and not any(executor.busy for executor in self.executors)
            and not self.ledger.owner
        )


class NodeRim:
    """Effects of one node's core."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._world = node.world

    def dial(self, connection: int, address: PeerAddress) -> None:
        self._world.dial(self._node, connection, address)

    def send(self, connection: int, frame: bytes) -> None:
        self._world.transmit(self._node, connection, frame)

    def hang_up(self, connection: int) -> None:
        self._world.hang_up(self._node, connection)

    def resolve(self, peer_key: str) -> None:
        node, world = self._node, self._world
        node.post(lambda: node.core.resolved(peer_key, world.address(peer_key), world.now), lag=world.short())

    def command(self, rank: int, command: RankCommand) -> None:
        node = self._node
        lag = self._world.ordered(("rank", node.incarnation, rank), self._world.short())
        node.post(lambda: node.executors[rank].execute(command), lag=lag)

    def emit(self, event: HandoffEvent) -> None:
        node = self._node
        lag = self._world.ordered(("events", node.incarnation), self._world.short())
        node.post(lambda: node.handle(event), lag=lag)
