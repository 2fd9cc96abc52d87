"""The rotation: from what is stored to what should be, one safe step at a time.

Every part trusts some authorities and shows a certificate of one of them. To change the authority, first all learn to
trust the next one; when every pod has the new files, all get certificates from it; when every pod has those, the former
one is trusted no more. Kubelets bring changed Secrets to pods within a minute or two; `Lifetimes.spread` is longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol


@dataclass(frozen=True)
class Lifetimes:
    """Both are renewed when two thirds of their time are over."""

    authority: timedelta = timedelta(days=365)
    certificate: timedelta = timedelta(days=30)
    spread: timedelta = timedelta(minutes=10)


@dataclass(frozen=True)
class Pair:
    """A certificate with its key, both in PEM; valid from `begins` to `ends`, which stand in the certificate."""

    certificate: bytes
    key: bytes
    begins: datetime
    ends: datetime

    def due(self, now: datetime) -> bool:
        """Whether it is to be renewed."""
        return now >= self.begins + (self.ends - self.begins) * 2 / 3


@dataclass(frozen=True)
class Leaf:
    """What one part's pods mount: their certificate, and the authorities they trust. `since` is the last change."""

    pair: Pair
    trusted: tuple[bytes, ...]
    since: datetime


@dataclass(frozen=True)
class Stored:
    """Everything there is. `following` is trusted already, `former` still; no more than one of them is there."""

    current: Pair | None = None
    following: Pair | None = None
    former: bytes | None = None
    leaves: Mapping[str, Leaf] = field(default_factory=dict)


class Maker(Protocol):
    """Makes keys, and certificates for them."""

    def authority(self, now: datetime, lifetime: timedelta) -> Pair: ...

    def certificate(self, authority: Pair, part: str, now: datetime, lifetime: timedelta) -> Pair: ...

    def signed(self, authority: Pair, certificate: bytes) -> bool: ...


def rotate(stored: Stored, parts: Sequence[str], now: datetime, maker: Maker, lifetimes: Lifetimes) -> Stored:
    """The next state; the same one when nothing is due. Safe to be repeated from any state that it left behind."""
    current = stored.current or maker.authority(now, lifetimes.authority)
    following, former = stored.following, stored.former
    settled = set(parts) <= stored.leaves.keys() and all(
        now >= leaf.since + lifetimes.spread for leaf in stored.leaves.values()
    )
    if following is not None and settled and _all_trust(stored, following.certificate):
        current, following, former = following, None, current.certificate
    elif former is not None and settled and _all_signed(stored, current, maker):
        former = None
    elif following is None and former is None and current.due(now):
        following = maker.authority(now, lifetimes.authority)
    trusted = tuple(one for one in (current.certificate, following and following.certificate, former) if one)
    leaves = {
        part: _leaf(stored.leaves.get(part), part, current, trusted, now, maker, lifetimes.certificate)
        for part in parts
    }
    return Stored(current, following, former, leaves)


def _leaf(
    before: Leaf | None,
    part: str,
    authority: Pair,
    trusted: tuple[bytes, ...],
    now: datetime,
    maker: Maker,
    lifetime: timedelta,
) -> Leaf:
    if before is None or before.pair.due(now) or not maker.signed(authority, before.pair.certificate):
        return Leaf(maker.certificate(authority, part, now, lifetime), trusted, now)
    return before if before.trusted == trusted else replace(before, trusted=trusted, since=now)


def _all_trust(stored: Stored, certificate: bytes) -> bool:
    return all(certificate in leaf.trusted for leaf in stored.leaves.values())


def _all_signed(stored: Stored, authority: Pair, maker: Maker) -> bool:
    return all(maker.signed(authority, leaf.pair.certificate) for leaf in stored.leaves.values())
