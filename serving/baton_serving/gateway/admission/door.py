"""The door of the gateway: limits for each key, a bound on what runs, a bounded queue before it. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from baton_serving.errors import QueueFull
from baton_serving.gateway.admission.fair_queue import FairQueue, Ticket, class_of
from baton_serving.gateway.admission.ledger import TOTAL, Ledger, Limits
from baton_serving.gateway.snapshot import RequestFacts

USUAL_ANSWER = 256  # tokens that a request is taken to ask for when it sets no limit
MAX_RETRY_AFTER = 60.0
SMOOTHING = 0.1


@dataclass(frozen=True)
class DoorConfig:
    """`max_running` requests go on at once, of all processes that share the ledger; None: any number, nobody waits.

    `max_queued` may wait in this process, each at most `queue_seconds`. `limits` hold for every key without its own.
    """

    max_running: int | None = None
    max_queued: int = 1024
    queue_seconds: float = 30.0
    limits: Limits = field(default_factory=Limits)

    def share(self, processes: int) -> DoorConfig:
        """What one of several processes goes by: each has a queue of its own, all limits else are shared."""
        return replace(self, max_queued=max(1, -(-self.max_queued // processes)) if self.max_queued else 0)

    @property
    def open(self) -> bool:
        """Whether it limits nothing."""
        return self.max_running is None and self.limits == Limits()


class _Open(msgspec.Struct, gc=False):
    """A request that was let in: the ledger's row, what was charged (None: no rate), whether it runs or waits."""

    row: int
    charged: int | None
    running: bool


class Door:
    """The `Admission` of one process."""

    def __init__(
        self,
        config: DoorConfig,
        ledger: Ledger | None = None,
        own_limits: Callable[[str], Limits | None] = lambda tenant: None,
    ) -> None:
        """`own_limits` are those of one tenant; where they say nothing, the usual ones hold."""
        self._config = config
        self._own_limits = own_limits
        self._ledger = Ledger() if ledger is None else ledger
        self._queue = FairQueue()
        self._open: dict[int, _Open] = {}
        self._pushed_out: list[int] = []
        self._interval = 1.0  # seconds between two ends, smoothed
        self._last_end: float | None = None

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._open) - len(self._queue) - len(self._pushed_out)

    def offer(self, facts: RequestFacts, now: float) -> bool:
        """True: go on. False: wait. Raises `QueueFull`, with the seconds after which it may be otherwise."""
        limits, ledger = self._limits(facts.tenant), self._ledger
        tokens = facts.prompt_tokens + (facts.max_tokens or USUAL_ANSWER)
        with ledger.lock:
            row = ledger.row(facts.tenant, limits.tokens_per_minute)
            self._check_limits(row, limits, tokens, now)
            runs = not self._queue and self._room()
            if runs:
                ledger.count(TOTAL, 1)
            else:
                self._make_place(facts)
            ledger.count(row, 1)
            if limits.tokens_per_minute is not None:
                ledger.spend(row, tokens)
        self._open[facts.number] = _Open(row, None if limits.tokens_per_minute is None else tokens, runs)
        if not runs:
            deadline = now + self._config.queue_seconds
            self._queue.push(Ticket(facts.number, facts.tenant, class_of(facts.priority), tokens, deadline))
        return runs

    def admit(self, now: float) -> Sequence[int]:
        """Waiting requests that may go on now."""
        if not self._queue:
            return ()
        admitted: list[int] = []
        with self._ledger.lock:
            while self._queue and self._room():
                ticket = self._queue.pop()
                self._ledger.count(TOTAL, 1)
                self._open[ticket.number].running = True
                admitted.append(ticket.number)
        return admitted

    def shed(self, now: float) -> Sequence[int]:
        """Waiting requests that must be refused now: past their deadline, or pushed out by better ones."""
        shed, self._pushed_out = self._pushed_out, []
        while self._queue:
            oldest = next(iter(self._queue))
            if oldest.deadline > now:
                break
            self._queue.remove(oldest.number)
            shed.append(oldest.number)
        return shed

    def leave(self, number: int, tokens: int, now: float) -> None:
        """The request has ended, whatever became of it; what it was charged beyond `tokens` is given back."""
        gone, ledger = self._open.pop(number), self._ledger
        with ledger.lock:
            ledger.count(gone.row, -1)
            if gone.running:
                ledger.count(TOTAL, -1)
            if gone.charged is not None:
                ledger.spend(gone.row, tokens - gone.charged)
        if not gone.running:
            if number in self._queue:
                self._queue.remove(number)
            elif number in self._pushed_out:
                self._pushed_out.remove(number)
        else:
            if self._last_end is not None:
                self._interval += SMOOTHING * (now - self._last_end - self._interval)
            self._last_end = now

    def counts(self, number: int) -> bool:
        """Whether `leave` makes use of this request's tokens."""
        return self._open[number].charged is not None

    def gauges(self) -> Mapping[str, int]:
        """Requests that wait, by class."""
        return self._queue.waiting()

    @property
    def retry_after(self) -> float:
        """Seconds until those who wait now will have been let in, at the rate at which requests end."""
        return min(MAX_RETRY_AFTER, max(1.0, self._interval * (len(self._queue) + 1)))

    def _limits(self, tenant: str) -> Limits:
        own = self._own_limits(tenant)
        return self._config.limits if own is None else own.over(self._config.limits)

    def _room(self) -> bool:
        most = self._config.max_running
        return most is None or self._ledger.open_requests(TOTAL) < most

    def _check_limits(self, row: int, limits: Limits, tokens: int, now: float) -> None:
        if limits.requests is not None and self._ledger.open_requests(row) >= limits.requests:
            message = f"this key has {limits.requests} requests open, which is its limit; wait for one to end"
            raise QueueFull(message, retry_after=1.0)
        if limits.tokens_per_minute is not None:
            seconds = self._ledger.deficit(row, tokens, limits.tokens_per_minute, now)
            if seconds > 0:
                rate = f"{limits.tokens_per_minute} tokens a minute"
                raise QueueFull(f"this key is over its limit of {rate}; try again in {seconds:.0f} s", seconds)

    def _make_place(self, facts: RequestFacts) -> None:
        """Push somebody out of a full queue, or raise."""
        if len(self._queue) < self._config.max_queued:
            return
        loser = self._queue.least_wanted(class_of(facts.priority), facts.tenant) if self._queue else None
        if loser is None:
            message = f"{len(self._queue)} requests wait already, which is the limit; try again later"
            raise QueueFull(message, self.retry_after)
        self._queue.remove(loser.number)
        self._pushed_out.append(loser.number)
