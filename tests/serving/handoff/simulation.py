"""Several workers on a virtual clock: real cores and rank executors, the fake transport, a control network and a model
scheduler that owns pages and knows what every one of them must hold.

Nothing here uses a thread, a socket or the real time, so a run is a function of its plan and seed. A broken promise is
a `Violation`: a page that changed under its owner, a page freed twice or lost, a request that ended twice or never.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from baton_serving.handoff.backends.base import HostMemory, Outcome
from baton_serving.handoff.backends.fake import FakeFabric, Script
from baton_serving.handoff.core import HandoffCore
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
        self.engines: list[str] = []
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

    def _engine(self, name: str):  # type: ignore[no-untyped-def]
        self.engines.append(name)
        return self.world.fabric.backend(name)

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


@dataclass
class Wire:
    """A control connection: two ends, each a node and the number it knows the connection by."""

    ends: list[tuple[Node, int]]
    open: bool = True


class WatchedFabric(FakeFabric):
    """Sees every block land: only on a page that a receive holds, only from one that a send holds."""

    def __init__(self, world: World) -> None:
        super().__init__(clock=lambda: world.now, director=world.direct)
        self._world = world

    def moving(self, source: str, src: int | None, target: str, dst: int) -> None:
        if src is not None:
            self._watch(source, src, "send")
        self._watch(target, dst, "receive")

    def _watch(self, engine: str, address: int, side: str) -> None:
        incarnation, rank, _ = engine.rsplit("-", 2)
        for node in self._world.nodes:
            if node.incarnation == incarnation:
                pool = node.ledger.pools[int(rank[1:])]
                page = (address - pool.ctypes.data) // pool.shape[1]
                owner = node.ledger.owner.get(page, "nobody")
                if not owner.startswith(side):
                    raise Violation(f"a block of a {side} touches page {page} of {owner} at {incarnation}")


MakeCore = Callable[[PeerDescriptor, NodeRim, Limits], HandoffCore]


class World:
    """Everything, and the clock."""

    def __init__(self, plan: Plan, make_core: MakeCore | None = None) -> None:
        self.plan = plan
        self.now = 0.0
        self.random = random.Random(plan.seed)
        self.make_core: MakeCore = make_core or (
            lambda blank, rim, limits: HandoffCore(blank, rim, limits, verify=True)
        )
        self.fabric = WatchedFabric(self)
        self.wires: dict[tuple[str, int], Wire] = {}
        self.attempts: dict[int, int] = {}
        self.outcome: dict[int, list[str]] = {}
        self.graveyard: list[Node] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._fifo: dict[tuple[object, ...], float] = {}
        self._accepted = itertools.count(1)
        self._births = itertools.count(1)
        self._recorded: list[bytes] = []
        self.nodes = [self._born(index) for index in range(len(plan.workers))]
        for number, request in enumerate(plan.requests):
            self.at(request.at, partial(self._begin, number, 0))
            if request.abort_source is not None:
                self.at(request.at + request.abort_source, partial(self._abort, number, request.source))
            if request.abort_target is not None:
                self.at(request.at + request.abort_target, partial(self._abort, number, request.target))
        for fault in plan.faults:
            self.at(fault.at, partial(self._strike, fault))

    # Time.

    def at(self, lag: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + lag, next(self._order), action))

    def short(self) -> float:
        return self.random.choice((0.0, 0.001, 0.01))

    def ordered(self, channel: tuple[object, ...], lag: float) -> float:
        """A lag that keeps the channel first in, first out."""
        due = max(self._fifo.get(channel, 0.0), self.now + lag)
        self._fifo[channel] = due
        return due - self.now

    def run(self, horizon: float = 120.0) -> None:
        """Until everything planned has happened and every worker is idle; a `Violation` at `horizon` otherwise."""
        last = max(
            [request.at + 1.0 for request in self.plan.requests]
            + [fault.at + fault.lasts + 0.5 for fault in self.plan.faults]
            + [1.0]
        )
        while self._queue:
            due = self._queue[0][0]
            fabric_due = self.fabric.next_due()
            if fabric_due is not None and fabric_due < due:
                self.now = max(self.now, fabric_due)
                self.fabric.pump()
                continue
            self.now, _, action = heapq.heappop(self._queue)
            self.fabric.pump()
            action()
            if self.now > last and self.now % 1.0 < TURN and self._quiet():
                break
            if self.now > horizon:
                raise Violation(f"not idle at {horizon:g} s: {[self._state(node) for node in self.nodes]}")
        for node in self.nodes:
            node.ledger.verify()
            if node.ledger.owner:
                raise Violation(f"{node.incarnation} leaked pages: {node.ledger.owner}")
            for legs in (node.sends, node.receives):
                for key, leg in legs.items():
                    if not leg.ended:
                        raise Violation(f"{node.incarnation}: {key} never ended")

    def _quiet(self) -> bool:
        """Nothing is under way, as the workers and as their schedulers see it."""
        return all(
            node.idle
            and not node.hung
            and all(leg.ended and not leg.quarantined for legs in (node.sends, node.receives) for leg in legs.values())
            for node in self.nodes
        )

    def _state(self, node: Node) -> str:
        core = node.core
        open_ = [f"{send.key}:{send.state.name}" for send in core.sends] + [
            f"{receive.key}:{receive.state.name}" for receive in core.receives
        ]
        return f"{node.incarnation} {open_} {core.fencing.phase.name} owns {node.ledger.owner}"

    # Workers.

    def _born(self, index: int) -> Node:
        node = Node(self, index, next(self._births))
        node.post(node.core.start)
        self.at(TURN * self.random.random(), node.turn)
        return node

    def address(self, peer_key: str) -> PeerAddress | None:
        node = self.nodes[int(peer_key[1:])]
        return PeerAddress(f"tcp://{node.name}", node.incarnation)

    def _strike(self, fault: Fault) -> None:
        node = self.nodes[fault.worker]
        match fault.kind:
            case "kill":
                self._kill(node, fault)
            case "hang":
                if not node.hung:
                    node.hung = True
                    for engine in node.engines:
                        self.fabric.freeze(engine)
                    self.at(fault.lasts, partial(self._resume, node))
            case "freeze":
                node.frozen_until = self.now + fault.lasts
            case "cut":
                for wire in [wire for (name, _), wire in self.wires.items() if name == node.incarnation]:
                    self._end(wire, both=True)
            case "noise":
                connection = -1
                node.post(lambda: node.core.received(connection, self.random.randbytes(40), self.now))
                for (name, number), wire in list(self.wires.items()):
                    if name == node.incarnation and wire.open:
                        noise = self.random.randbytes(20)
                        node.post(partial(self._deliver, node, number, noise, wire))
            case "lie":
                for (name, number), wire in list(self.wires.items()):
                    if name == node.incarnation and wire.open and self._recorded:
                        old = self.random.choice(self._recorded)
                        node.post(partial(self._deliver, node, number, old, wire))

    def _kill(self, node: Node, fault: Fault) -> None:
        """SIGKILL. Bytes that have left the process may still land; peers see the connection end a little later."""
        node.alive = False
        self.graveyard.append(node)  # its memory stays mapped for late bytes of its own
        for executor in node.executors:
            for engine in executor._engines.values():
                self.fabric.leave(engine.backend)  # type: ignore[arg-type]
                self.fabric.thaw(engine.backend.name)  # type: ignore[attr-defined]
        for wire in [wire for (name, _), wire in self.wires.items() if name == node.incarnation]:
            self._end(wire, both=False, dead=node)
        for legs, receiving in ((node.sends, False), (node.receives, True)):
            for leg in legs.values():
                if not leg.ended:
                    leg.ended = "died"
                    self.leg_ended(node, leg, receiving)
        self.nodes[node.index] = self._born(node.index)

    def _resume(self, node: Node) -> None:
        if not node.alive:
            return
        node.hung = False
        for engine in node.engines:
            self.fabric.thaw(engine)
        backlog, node.backlog = node.backlog, deque()
        for action in backlog:
            self.at(0.0, action)

    # The control network.

    def dial(self, node: Node, connection: int, address: PeerAddress) -> None:
        peer = self.nodes[int(address.endpoint.removeprefix("tcp://w"))]
        number = next(self._accepted) * 2 - 1
        wire = Wire([(node, connection), (peer, number)])
        self.wires[node.incarnation, connection] = wire
        self.wires[peer.incarnation, number] = wire
        if not peer.alive:
            self._end(wire, both=True)

    def transmit(self, node: Node, connection: int, frame: bytes) -> None:
        wire = self.wires.get((node.incarnation, connection))
        if wire is None or not wire.open:
            return
        if len(self._recorded) < 200:
            self._recorded.append(frame)
        if self.random.random() < self.plan.loss:
            return
        peer, number = wire.ends[1] if wire.ends[0][0] is node else wire.ends[0]
        copies = 2 if self.random.random() < self.plan.loss else 1
        for _ in range(copies):
            lag = self.ordered((id(wire), peer.incarnation), self.random.choice((0.0, 0.001, 0.01, 0.1)))
            peer.post(partial(self._deliver, peer, number, frame, wire), lag=lag)

    def _deliver(self, node: Node, number: int, frame: bytes, wire: Wire) -> None:
        if self.wires.get((node.incarnation, number)) is wire:
            node.core.received(number, frame, self.now)

    def hang_up(self, node: Node, connection: int) -> None:
        wire = self.wires.get((node.incarnation, connection))
        if wire is not None:
            self._end(wire, both=False, dead=node)

    def _end(self, wire: Wire, both: bool, dead: Node | None = None) -> None:
        """The connection ends; whoever is not the cause hears of it after what was sent before."""
        if not wire.open:
            return
        wire.open = False
        for node, number in wire.ends:
            if both or node is not dead:
                lag = self.ordered((id(wire), node.incarnation), self.random.choice((0.0, 0.01, 0.2)))
                node.post(partial(self._hear_end, node, number), lag=lag)
            else:
                self.wires.pop((node.incarnation, number), None)

    def _hear_end(self, node: Node, number: int) -> None:
        self.wires.pop((node.incarnation, number), None)
        node.core.disconnected(number, self.now)

    # Writes.

    def direct(self, source: str, target: str, blocks: int) -> Script:
        chance = self.random.random
        quick = [[self.random.choice((0.0, 0.0, 0.002, 0.02))] for _ in range(blocks)]
        if chance() >= self.plan.trouble:
            return Script(quick)
        kind = self.random.choice(("slow", "drop", "duplicate", "refuse", "fail", "fail late", "crawl"))
        if kind == "slow":
            return Script([[self.random.uniform(0.0, 2.0)] for _ in range(blocks)])
        if kind == "crawl":
            return Script([[self.random.uniform(0.0, 9.0)] for _ in range(blocks)])
        if kind == "drop":
            quick[self.random.randrange(blocks)] = []
            return Script(quick)
        if kind == "duplicate":
            return Script([[delays[0], delays[0] + self.random.uniform(0.0, 0.5)] for delays in quick])
        if kind == "refuse":
            return Script([[] for _ in range(blocks)], Outcome.NOTHING_SENT)
        if kind == "fail":
            return Script([row if chance() < 0.5 else [] for row in quick], Outcome.BROKEN, ends=0.03)
        late = [[self.random.uniform(0.0, 8.0)] for _ in range(blocks)]
        return Script(late, Outcome.BROKEN, ends=self.random.uniform(0.0, 1.0))

    # Requests.

    def _begin(self, number: int, attempt: int) -> None:
        request = self.plan.requests[number]
        source, target = self.nodes[request.source], self.nodes[request.target]
        self.attempts[number] = attempt
        lag = request.join_lag
        source.post(partial(self._begin_send, source, number, attempt), lag=max(0.0, -lag))
        target.post(partial(self._begin_receive, target, number, attempt), lag=max(0.0, lag))

    def _begin_send(self, node: Node, number: int, attempt: int) -> None:
        if self.attempts[number] == attempt:
            node.begin_send(number, attempt)

    def _begin_receive(self, node: Node, number: int, attempt: int) -> None:
        if self.attempts[number] == attempt:
            node.begin_receive(number, attempt)

    def _abort(self, number: int, worker: int) -> None:
        node = self.nodes[worker]
        node.post(lambda: node.abort(number))

    def send_refused(self, node: Node, leg: Leg) -> None:
        """The sender has no pages: the gateway ends the other leg."""
        request = self.plan.requests[leg.request]
        target = self.nodes[request.target]
        target.post(lambda: target.abort(leg.request))

    def leg_ended(self, node: Node, leg: Leg, receiving: bool) -> None:
        """Gateway: an arrival ends the request; a failed receiver is retried with a new attempt, twice."""
        if not receiving:
            return
        ends = self.outcome.setdefault(leg.request, [])
        if "arrived" in ends and leg.ended == "arrived":
            raise Violation(f"request {leg.request} arrived twice")
        ends.append(leg.ended)
        request = self.plan.requests[leg.request]
        cancelled = request.abort_source is not None or request.abort_target is not None
        if leg.ended != "arrived" and leg.attempt < 2 and not cancelled and self.attempts[leg.request] == leg.attempt:
            self.at(0.1, partial(self._begin, leg.request, leg.attempt + 1))
