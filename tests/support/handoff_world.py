"""Several simulated workers on a virtual clock, with the fake transport and a control network between them.

Nothing here uses a thread, a socket or the real time, so a run is a function of its plan and seed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from support.handoff_node import TURN, Fault, Leg, Node, NodeRim, Plan, Violation

from baton_serving.handoff.backends.base import Outcome
from baton_serving.handoff.backends.fake import FakeFabric, Script
from baton_serving.handoff.core import HandoffCore
from baton_serving.handoff.layout import PeerDescriptor
from baton_serving.handoff.rim import Limits, PeerAddress


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
                self._kill(node)
            case "hang":
                self._hang(node, fault.lasts)
            case "freeze":
                node.frozen_until = self.now + fault.lasts
            case "cut" if self.plan.alone:
                pass  # within a host no connection ends but by its processes
            case "cut":
                for wire in [wire for (name, _), wire in self.wires.items() if name == node.incarnation]:
                    self._end(wire, both=True)
            case "noise":
                self._inject(node, lambda: self.random.randbytes(30))
            case "lie":
                self._inject(node, lambda: self.random.choice(self._recorded or [b""]))

    def _hang(self, node: Node, lasts: float) -> None:
        """SIGSTOP: nothing of the process moves until `lasts` seconds have passed."""
        if not node.hung:
            node.hung = True
            for engine in node.engines:
                self.fabric.freeze(engine)
            self.at(lasts, partial(self._resume, node))

    def _inject(self, node: Node, frame: Callable[[], bytes]) -> None:
        """Frames that the peer never sent: on every connection of the node, and on one that nobody opened."""
        node.post(partial(node.core.received, -1, frame(), self.now))
        for (name, number), wire in list(self.wires.items()):
            if name == node.incarnation and wire.open:
                node.post(partial(self._deliver, node, number, frame(), wire))

    def _kill(self, node: Node) -> None:
        """SIGKILL. Bytes that have left the process may still land; peers see the connection end a little later."""
        node.alive = False
        self.graveyard.append(node)  # its memory stays mapped for late bytes of its own
        for engine in node.engines.values():
            self.fabric.leave(engine)
            self.fabric.thaw(engine.name)
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
        kinds = ("slow", "crawl", "duplicate", "refuse", "drop", "fail", "fail late")
        # A copy by the writer's own hands takes its time or does not begin; nothing of it is ever under way alone.
        kind = self.random.choice(kinds[:4] if self.plan.alone else kinds)
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
