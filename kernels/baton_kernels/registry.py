"""How an op's implementations are declared and chosen.

Each op module holds a constant table, best implementation first. Nothing is registered at run time and nothing is
imported before it is chosen, so a machine without FlashInfer or Triton never tries to load them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

import torch

F = TypeVar("F")
B = TypeVar("B")

AUTO = "auto"


HALF = frozenset({torch.float16, torch.bfloat16})
TRITON_TYPES = HALF | {torch.float32}


class KernelUnavailable(ValueError):
    """No implementation of an op fits; the message names the op, the choice and what each one lacks."""


@dataclass(frozen=True)
class Needs:
    """What an implementation requires; the defaults accept anything.

    `capability` is the least CUDA compute capability, `major` the only generation; `packages` are importable module
    names.
    """

    device: str | None = None
    capability: tuple[int, int] | None = None
    major: int | None = None
    dtypes: frozenset[torch.dtype] | None = None
    packages: tuple[str, ...] = ()

    def unmet(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """The first requirement that `device` and `dtype` do not meet, in words, or None."""
        if self.device is not None and device.type != self.device:
            return f"needs a {self.device} device, not {device.type}"
        if self.capability is not None and torch.cuda.get_device_capability(device) < self.capability:
            return f"needs compute capability {self.capability[0]}.{self.capability[1]}"
        if self.major is not None and torch.cuda.get_device_capability(device)[0] != self.major:
            return f"needs compute capability {self.major}.x"
        if self.dtypes is not None and dtype not in self.dtypes:
            return f"does not support {dtype}"
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f"needs the package {missing[0]}" if missing else None


@dataclass(frozen=True)
class Implementation:
    """One way to run an op: `target` is `module:attribute`, imported when it is chosen."""

    name: str
    target: str
    needs: Needs = field(default_factory=Needs)


@dataclass(frozen=True)
class Op(Generic[F]):
    """An op and its implementations, best first. `F` is the callable type that its contract describes."""

    name: str
    implementations: tuple[Implementation, ...]

    def select(self, device: torch.device, dtype: torch.dtype, choice: str = AUTO) -> F:
        """The implementation called `choice`, or with "auto" the first one whose needs are met (KernelUnavailable)."""
        return self.build(device, dtype, lambda implementation: implementation, choice)

    def build(self, device: torch.device, dtype: torch.dtype, make: Callable[[F], B], choice: str = AUTO) -> B:
        """What `make` makes of the first implementation, of those `select` would take, that it does not refuse.

        `make` refuses by raising KernelUnavailable, which is raised here when none is left.
        """
        return self.choose(device, dtype, make, choice)[1]

    def choose(
        self, device: torch.device, dtype: torch.dtype, make: Callable[[F], B], choice: str = AUTO
    ) -> tuple[str, B]:
        """`build`, and the name of the implementation that it took."""
        reasons = []
        for implementation in self.implementations:
            if choice not in (AUTO, implementation.name):
                continue
            reason = implementation.needs.unmet(device, dtype)
            if reason is None:
                try:
                    return implementation.name, make(cast(F, _resolve(implementation.target)))
                except KernelUnavailable as refusal:
                    reason = str(refusal)
            reasons.append(f"{implementation.name} {reason}")
        known = ", ".join(implementation.name for implementation in self.implementations)
        raise KernelUnavailable(
            f"{self.name}: {'; '.join(reasons) or f'no implementation {choice!r}'} (known: {known})"
        )


def _resolve(target: str) -> object:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
