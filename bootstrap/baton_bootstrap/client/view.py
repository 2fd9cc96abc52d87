"""Pure merging: what one replica last said, and one view from what all replicas say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import msgspec

from baton_bootstrap.errors import Ambiguous, NotFound
from baton_bootstrap.records import Delta, Entry, Snapshot, State


@dataclass(frozen=True)
class ReplicaView:
    """One replica's word. Its entries count only while `connected`; absence from them only when not `warming`."""

    connected: bool = False
    warming: bool = True
    revision: int = -1
    entries: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def trusted(self) -> bool:
        """Whether a worker that is missing here is really gone, as far as this replica knows."""
        return self.connected and not self.warming

    def with_snapshot(self, snapshot: Snapshot) -> ReplicaView:
        entries = {entry.worker.id: entry for entry in snapshot.entries}
        return ReplicaView(connected=True, warming=snapshot.warming, revision=snapshot.revision, entries=entries)

    def with_delta(self, delta: Delta) -> ReplicaView | None:
        """The view after the delta; None when it does not follow on this view and a snapshot is needed."""
        if not self.connected or delta.base != self.revision:
            return None
        if delta.revision == delta.base:
            return replace(self, warming=delta.warming)
        entries = dict(self.entries)
        for worker_id in delta.removed:
            entries.pop(worker_id, None)
        for entry in delta.joined:
            entries[entry.worker.id] = entry
        for worker_id, status in delta.changed.items():
            held = entries.get(worker_id)
            if held is None:
                return None
            entries[worker_id] = msgspec.structs.replace(held, status=status)
        return ReplicaView(connected=True, warming=delta.warming, revision=delta.revision, entries=entries)

    def lost(self) -> ReplicaView:
        return replace(self, connected=False)


@dataclass(frozen=True)
class View:
    """Every live worker by id, merged over the replicas. `version` rises with every change, in this process only.

    `connected` counts the replicas that answer; with none the view is the last one known.
    """

    version: int = 0
    connected: int = 0
    entries: Mapping[str, Entry] = field(default_factory=dict)

    def find(self, key: str) -> Entry:
        """The one worker with this id or key, compared whole. Raises `NotFound` or `Ambiguous`."""
        return only(key, self._by_key.get(key, ()))

    @cached_property
    def _by_key(self) -> dict[str, list[Entry]]:
        index: dict[str, list[Entry]] = {}
        for entry in self.entries.values():
            for key in dict.fromkeys((entry.worker.id, *entry.worker.keys)):
                index.setdefault(key, []).append(entry)
        return index


def merge(replicas: Iterable[ReplicaView], known: Mapping[str, Entry]) -> dict[str, Entry]:
    """One entry per worker id: of several incarnations the latest epoch, of several verdicts the better informed.

    Without a replica whose silence about a worker means anything, workers of `known` stay.
    """
    answering = [replica for replica in replicas if replica.connected]
    merged = {} if any(replica.trusted for replica in answering) else dict(known)
    seen: set[str] = set()
    for replica in answering:
        for worker_id, entry in replica.entries.items():
            if worker_id not in seen or _rank(entry) > _rank(merged[worker_id]):
                merged[worker_id] = entry
                seen.add(worker_id)
    return merged


def only(key: str, entries: Iterable[Entry]) -> Entry:
    """The single one of `entries`. Raises `NotFound` when there is none, `Ambiguous` when there are several."""
    found = list(entries)
    if not found:
        raise NotFound(f"no live worker answers to {key!r}")
    if len(found) > 1:
        names = ", ".join(f"{entry.worker.id} ({entry.worker.incarnation})" for entry in found)
        raise Ambiguous(f"{key!r} names several live workers: {names}")
    return found[0]


def _rank(entry: Entry) -> tuple[int, bool]:
    """A replica that sees no ticks may have missed them; one that sees them has not."""
    return entry.worker.epoch, entry.status.state is not State.STALLED
