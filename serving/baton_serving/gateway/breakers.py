"""Circuit breakers, pure: who failed lately is not asked for a while, then by one request, then again by all."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class BreakerConfig:
    """Opens after `failures` in a row, for `first` seconds, each time twice as long, up to `longest`."""

    failures: int = 3
    first: float = 0.5
    longest: float = 15.0


@dataclass
class _Circuit:
    failures: int = 0
    openings: int = 0
    open_until: float = 0.0
    probing: bool = False


class Breakers(Generic[K]):
    """One circuit per key; those without a recent failure are not even held. Times are in seconds of one clock."""

    def __init__(self, config: BreakerConfig | None = None) -> None:
        self._config = config or BreakerConfig()
        self._circuits: dict[K, _Circuit] = {}
        self.troubled: Collection[K] = self._circuits.keys()  # those that might be refused; a view

    def allows(self, key: K, now: float) -> bool:
        """Whether `key` may be asked; an open circuit whose time is over lets one request through."""
        circuit = self._circuits.get(key)
        return circuit is None or not circuit.openings or (now >= circuit.open_until and not circuit.probing)

    def asked(self, key: K, now: float) -> None:
        """A request goes to `key`: it is the probe when the circuit was open."""
        circuit = self._circuits.get(key)
        if circuit is not None and circuit.openings:
            circuit.probing = True

    def succeeded(self, key: K) -> None:
        """Close the circuit."""
        self._circuits.pop(key, None)

    def abandoned(self, key: K) -> None:
        """The request that was asked ended without a verdict: another may probe."""
        circuit = self._circuits.get(key)
        if circuit is not None:
            circuit.probing = False

    def failed(self, key: K, now: float) -> bool:
        """Count a failure; True when this one opened the circuit."""
        circuit = self._circuits.setdefault(key, _Circuit())
        circuit.failures += 1
        if circuit.failures < self._config.failures and not circuit.openings:
            return False
        if now < circuit.open_until:
            return False
        circuit.open_until = now + min(self._config.longest, self._config.first * 2**circuit.openings)
        circuit.openings += 1
        circuit.probing = False
        return True

    def forget(self, key: K) -> None:
        self._circuits.pop(key, None)

    def open_keys(self, now: float) -> list[K]:
        return [key for key, circuit in self._circuits.items() if now < circuit.open_until]
