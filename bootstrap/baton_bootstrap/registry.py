"""The state of the bootstrap server, pure: who is alive, since which revision, until when. No sockets, no own clock.

Every change raises the revision by one. Entries are kept in order of their last change and departures in a bounded
log, so what changed since any revision is read off the tail; nothing is queued per watcher, however slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

import msgspec

from baton_bootstrap.errors import LeaseLost, Refused
from baton_bootstrap.records import Assignment, Beat, Delta, Departure, Entry, Snapshot, State, Status, Worker

MAX_NAME = 512
MAX_KEYS = 16
MAX_DETAIL = 64 * 1024
MAX_PATH = 4096
MAX_GATEWAYS = 4096


class Change(Enum):
    """What a heartbeat changed for watchers: its load alone can wait a moment, everything else cannot."""

    NONE = 0
    LOAD = 1
    STATE = 2


@dataclass(frozen=True)
class Lease:
    """A worker's hold on its entry, one per registration: an older session of the same worker cannot end a newer."""

    worker_id: str
    session: int


@dataclass
class _Seat:
    entry: Entry
    session: int
    joined: int  # revision of the registration
    changed: int  # revision of the last change
    heard_at: float
    beat: Beat  # the last
    still_until: float  # the tick may stand still until then


class Registry:
    """Live workers by id. `lease` and `warming` are in seconds of `clock`, which only needs to be monotonic.

    For `warming` seconds after the start absence means nothing: the workers of a former run are still coming back.
    """

    def __init__(
        self,
        *,
        instance: str,
        lease: float,
        clock: Callable[[], float],
        warming: float = 0.0,
        departures: int = 4096,
    ) -> None:
        self.instance = instance
        self.lease = lease
        self.revision = 0
        self._clock = clock
        self._warm_at = clock() + warming
        self._departures = departures
        self._sessions = 0
        self._seats: dict[str, _Seat] = {}  # in order of `changed`
        self._removed: dict[str, tuple[int, Departure]] = {}  # in order of revision
        self._forgotten = 0  # deltas from before this revision can no longer be told
        self._by_key: dict[str, dict[str, None]] = {}
        self._assignments: Mapping[str, Assignment] = {}
        self._waiting: dict[str, tuple[int, float]] = {}  # by gateway process: requests held, and until when it counts

    @property
    def warming(self) -> bool:
        return self._clock() < self._warm_at

    def __len__(self) -> int:
        return len(self._seats)

    def register(self, worker: Worker, beat: Beat) -> Lease:
        """Enter a worker, or enter it anew: the same incarnation takes its own place, a later one its predecessor's.

        Raises `Refused` when a field is out of bounds or a later incarnation of the same id is alive.
        """
        _check(worker)
        held = self._seats.get(worker.id)
        if held is not None and held.entry.worker.incarnation != worker.incarnation:
            other = held.entry.worker
            if worker.epoch <= other.epoch:
                raise Refused(
                    f"worker {worker.id!r}: incarnation {worker.incarnation} (epoch {worker.epoch}) is not newer than "
                    f"{other.incarnation} (epoch {other.epoch}), which is alive; give each worker an id of its own"
                )
        if held is not None:
            self._unseat(worker.id)
        self._removed.pop(worker.id, None)
        now = self._clock()
        self._sessions += 1
        self.revision += 1
        self._seats[worker.id] = _Seat(
            entry=Entry(worker=worker, status=self._status(worker.id, beat, beat.state)),
            session=self._sessions,
            joined=self.revision,
            changed=self.revision,
            heard_at=now,
            beat=beat,
            still_until=now + max(self.lease, beat.busy_seconds),
        )
        for key in _names(worker):
            self._by_key.setdefault(key, {})[worker.id] = None
        return Lease(worker.id, self._sessions)

    def beat(self, lease: Lease, beat: Beat) -> Change:
        """Renew the lease. Raises `LeaseLost` when it ran out or another session took the worker's place."""
        seat = self._held(lease)
        if seat is None:
            raise LeaseLost(f"worker {lease.worker_id!r} no longer holds this lease")
        now = self._clock()
        seat.heard_at = now
        if beat.tick != seat.beat.tick or beat.state not in (State.READY, State.DRAINING):
            seat.still_until = now + self.lease
        seat.beat = beat
        seat.still_until = max(seat.still_until, now + beat.busy_seconds)
        state = State.STALLED if now >= seat.still_until else beat.state
        return self._set_status(seat, self._status(lease.worker_id, beat, state))

    def leave(self, lease: Lease, reason: Departure) -> bool:
        """Remove the worker if this lease still holds its entry; false when another session does, or none."""
        if self._held(lease) is None:
            return False
        self._remove(lease.worker_id, reason)
        return True

    def sweep(self) -> list[str]:
        """Remove the silent and mark the stalled, as the clock says; returns the ids of the workers removed."""
        now = self._clock()
        expired = [worker_id for worker_id, seat in self._seats.items() if now - seat.heard_at >= self.lease]
        for worker_id in expired:
            self._remove(worker_id, Departure.EXPIRED)
        for seat in list(self._seats.values()):
            if now >= seat.still_until:
                self._set_status(seat, msgspec.structs.replace(seat.entry.status, state=State.STALLED))
        return expired

    def assign(self, assignments: Mapping[str, Assignment]) -> None:
        """Take over what workers are to serve, by id; workers that are not named have no assignment any more.

        Raises `Refused` when a field is out of bounds.
        """
        for worker_id, assignment in assignments.items():
            for field, text in msgspec.structs.asdict(assignment).items():
                if isinstance(text, str) and len(text) > MAX_PATH:
                    raise Refused(f"assignment.{field} of {worker_id!r} has {len(text)} characters; at most {MAX_PATH}")
        self._assignments = dict(assignments)
        for seat in list(self._seats.values()):
            share = self._share(seat.entry.worker.id)
            self._set_status(seat, msgspec.structs.replace(seat.entry.status, share=share))

    def assignment(self, worker_id: str) -> Assignment | None:
        return self._assignments.get(worker_id)

    @property
    def waiting(self) -> int:
        """Requests that gateways hold because no worker is ready."""
        now = self._clock()
        return sum(requests for requests, until in self._waiting.values() if now < until)

    def hold(self, gateway: str, requests: int) -> None:
        """One process of a gateway holds so many requests; it counts for a lease. Raises `Refused` out of bounds."""
        now = self._clock()
        self._waiting = {name: held for name, held in self._waiting.items() if now < held[1] and name != gateway}
        if not 0 < len(gateway) <= MAX_NAME or len(self._waiting) >= MAX_GATEWAYS:
            raise Refused(
                f"waiting.gateway takes 1 to {MAX_NAME} characters, of at most {MAX_GATEWAYS} gateways at once"
            )
        if requests:
            self._waiting[gateway] = requests, now + self.lease

    def find(self, key: str) -> tuple[Entry, ...]:
        """Every live worker with this id or key, compared whole, newest epoch first."""
        entries = [self._seats[worker_id].entry for worker_id in self._by_key.get(key, ())]
        return tuple(sorted(entries, key=lambda entry: -entry.worker.epoch))

    def entries(self) -> Iterator[tuple[Entry, Beat, float]]:
        """Each entry with its last beat and the seconds since then."""
        now = self._clock()
        for seat in self._seats.values():
            yield seat.entry, seat.beat, now - seat.heard_at

    def snapshot(self) -> Snapshot:
        entries = tuple(seat.entry for seat in self._seats.values())
        return Snapshot(instance=self.instance, revision=self.revision, warming=self.warming, entries=entries)

    def changes_since(self, revision: int) -> Delta | None:
        """What happened after `revision`, only the latest of each worker; None when that can no longer be told."""
        if not self._forgotten <= revision <= self.revision:
            return None
        seats = list(takewhile(lambda seat: seat.changed > revision, reversed(self._seats.values())))
        removed = takewhile(lambda item: item[1][0] > revision, reversed(self._removed.items()))
        return Delta(
            base=revision,
            revision=self.revision,
            warming=self.warming,
            joined=tuple(seat.entry for seat in seats if seat.joined > revision),
            changed={seat.entry.worker.id: seat.entry.status for seat in seats if seat.joined <= revision},
            removed={worker_id: reason for worker_id, (_, reason) in removed},
        )

    def _status(self, worker_id: str, beat: Beat, state: State) -> Status:
        return Status(state=state, load=beat.load, progress=beat.progress, share=self._share(worker_id))

    def _share(self, worker_id: str) -> int:
        assignment = self._assignments.get(worker_id)
        return 100 if assignment is None else assignment.share

    def _held(self, lease: Lease) -> _Seat | None:
        seat = self._seats.get(lease.worker_id)
        return seat if seat is not None and seat.session == lease.session else None

    def _set_status(self, seat: _Seat, status: Status) -> Change:
        before = seat.entry.status
        if status == before:
            return Change.NONE
        self.revision += 1
        worker_id = seat.entry.worker.id
        seat.entry = msgspec.structs.replace(seat.entry, status=status)
        seat.changed = self.revision
        self._seats[worker_id] = self._seats.pop(worker_id)
        only_load = msgspec.structs.replace(before, load=status.load) == status
        return Change.LOAD if only_load else Change.STATE

    def _remove(self, worker_id: str, reason: Departure) -> None:
        self._unseat(worker_id)
        self.revision += 1
        self._removed[worker_id] = (self.revision, reason)
        while len(self._removed) > self._departures:
            oldest = next(iter(self._removed))
            self._forgotten = self._removed.pop(oldest)[0]

    def _unseat(self, worker_id: str) -> None:
        worker = self._seats.pop(worker_id).entry.worker
        for key in _names(worker):
            del self._by_key[key][worker_id]
            if not self._by_key[key]:
                del self._by_key[key]


def _names(worker: Worker) -> dict[str, None]:
    return dict.fromkeys((worker.id, *worker.keys))


def _check(worker: Worker) -> None:
    texts = msgspec.structs.asdict(worker)
    for field, text in texts.items():
        if isinstance(text, str) and len(text) > MAX_NAME:
            raise Refused(f"worker.{field} has {len(text)} characters; at most {MAX_NAME} are taken")
    for field in ("id", "incarnation", "http_url"):
        if not texts[field]:
            raise Refused(f"worker.{field} is empty; every worker must state it")
    if worker.epoch <= 0:
        raise Refused("worker.epoch must be positive: the unix time of the worker's start in nanoseconds")
    if len(worker.keys) > MAX_KEYS or any(not 0 < len(key) <= MAX_NAME for key in worker.keys):
        raise Refused(f"worker.keys takes at most {MAX_KEYS} keys of 1 to {MAX_NAME} characters")
    if len(worker.detail) > MAX_DETAIL:
        raise Refused(f"worker.detail has {len(worker.detail)} bytes; at most {MAX_DETAIL} are taken")
