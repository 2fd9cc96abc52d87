"""Who waits, and who is next: start-time fair queueing (Goyal, Vin and Cheng 1996) between classes, and between the
tenants of a class.

A flow's requests are served in order. Each flow has a virtual start time that moves on by cost over weight with each
request served, and the least start time goes first: flows that always have something waiting are served tokens in
proportion to their weights, and none waits for ever. A flow that was idle starts at the present, without credit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

CLASSES = ("low", "normal", "high")
WEIGHTS = {"low": 1.0, "normal": 8.0, "high": 64.0}  # tokens served, where all classes wait


def class_of(priority: int) -> str:
    """The class of a request's `priority`: below, at or above 0."""
    return "normal" if priority == 0 else "high" if priority > 0 else "low"


@dataclass(slots=True)
class Ticket:
    """One waiting request. `cost` in tokens; `deadline` in seconds."""

    number: int
    tenant: str
    kind: str  # of CLASSES
    cost: int
    deadline: float = 0.0


C = TypeVar("C")


@dataclass(slots=True)
class _Flow(Generic[C]):
    start: float
    content: C


class _FairShare(Generic[C]):
    """Flows with something waiting, by name, each with its virtual start time."""

    def __init__(self) -> None:
        self.flows: dict[str, _Flow[C]] = {}
        self._now = 0.0
        self._left: dict[str, float] = {}  # start times of flows that went idle ahead of the present

    def open(self, name: str, content: C) -> C:
        """A flow that begins to wait."""
        start = max(self._now, self._left.pop(name, 0.0))
        self.flows[name] = _Flow(start, content)
        return content

    def next(self) -> str:
        """The flow to serve; of equals the one that waits longest."""
        return min(self.flows, key=lambda name: self.flows[name].start)

    def served(self, name: str, cost: float) -> None:
        """`cost` is in tokens over the flow's weight."""
        flow = self.flows[name]
        self._now = flow.start
        flow.start += cost

    def close(self, name: str) -> None:
        """Nothing of the flow waits any more. What it was served beyond its share is held against it for so long."""
        start = self.flows.pop(name).start
        if not self.flows:
            self._left.clear()
            return
        if start > self._now:
            self._left[name] = start
        if len(self._left) > 2 * len(self.flows) + 64:
            self._left = {other: left for other, left in self._left.items() if left > self._now}


_Tenants = _FairShare[dict[int, Ticket]]


class FairQueue:
    """All waiting requests. Nothing here is O(requests waiting)."""

    def __init__(self) -> None:
        self._classes: _FairShare[_Tenants] = _FairShare()
        self._waiting: dict[int, Ticket] = {}  # by number, in order of arrival

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, number: int) -> bool:
        return number in self._waiting

    def __iter__(self) -> Iterator[Ticket]:
        """In order of arrival."""
        return iter(self._waiting.values())

    def push(self, ticket: Ticket) -> None:
        kind = self._classes.flows.get(ticket.kind)
        tenants = self._classes.open(ticket.kind, _FairShare()) if kind is None else kind.content
        flow = tenants.flows.get(ticket.tenant)
        line = tenants.open(ticket.tenant, {}) if flow is None else flow.content
        line[ticket.number] = ticket
        self._waiting[ticket.number] = ticket

    def pop(self) -> Ticket:
        """The next one to go on. Raises ValueError when none waits."""
        kind = self._classes.next()
        tenants = self._classes.flows[kind].content
        tenant = tenants.next()
        line = tenants.flows[tenant].content
        ticket = line[next(iter(line))]
        self._classes.served(kind, ticket.cost / WEIGHTS[kind])
        tenants.served(tenant, ticket.cost)
        return self.remove(ticket.number)

    def remove(self, number: int) -> Ticket:
        """Take out a request that waits. Raises KeyError when it does not."""
        ticket = self._waiting.pop(number)
        tenants = self._classes.flows[ticket.kind].content
        line = tenants.flows[ticket.tenant].content
        del line[number]
        if not line:
            tenants.close(ticket.tenant)
            if not tenants.flows:
                self._classes.close(ticket.kind)
        return ticket

    def waiting(self) -> dict[str, int]:
        """Requests by class."""
        counts = dict.fromkeys(CLASSES, 0)
        for kind, flow in self._classes.flows.items():
            counts[kind] = sum(len(tenant.content) for tenant in flow.content.flows.values())
        return counts

    def least_wanted(self, kind: str, tenant: str) -> Ticket | None:
        """Who gives way to a newcomer of this class and tenant: the newest of the lowest class that waits.

        Within the class it is the newest of the tenant with most requests waiting, so that one tenant's flood does not
        keep others out. None: the newcomer itself is the least wanted.
        """
        lowest = next((name for name in CLASSES if name in self._classes.flows), None)
        if lowest is None or CLASSES.index(lowest) > CLASSES.index(kind):
            return None
        flows = self._classes.flows[lowest].content.flows
        greediest = max(flows, key=lambda name: len(flows[name].content))
        line = flows[greediest].content
        if lowest == kind:
            own = len(flows[tenant].content) if tenant in flows else 0
            if own + 1 >= len(line):
                return None
        return line[next(reversed(line))]
