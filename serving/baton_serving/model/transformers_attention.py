"""Transformers' attention interface on our pages: the function its attention modules call, and what stands behind it.

The function finds what to do in a keyword argument of the forward pass: a step of ours, which writes and reads pages,
or a probe, which finds out how each layer calls it. Errors complete the sentence "<architecture> …".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface

from baton_kernels.kv_write import KVWrite
from baton_serving.errors import ConfigError
from baton_serving.model.attention import StepAttention

INTERFACE = "baton_paged"
_SPECIAL = ("s_aux", "position_bias", "head_mask")


@dataclass(frozen=True)
class AttentionCall:
    """How one layer calls its attention."""

    q_heads: int
    kv_heads: int
    k_dim: int
    v_dim: int
    scale: float
    window: int | None
    softcap: float | None


class Attend(Protocol):
    """What stands behind the interface in one forward pass: the probe or a step."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall
    ) -> torch.Tensor:
        """`q`, `k`, `v` are `[tokens, heads, dim]`; the result is `[tokens, q_heads, v_dim]`."""


def register_interface() -> None:
    """Make INTERFACE a value of transformers' `attn_implementation`; may be called again."""
    AttentionInterface.register(INTERFACE, _paged_attention)


def _paged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    baton_attend: Attend | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The registered function: tensors are `[1, heads, tokens, dim]`, the result `[1, tokens, heads, dim]`."""
    if baton_attend is None:
        raise ConfigError("does not pass keyword arguments on to its attention")
    special = {"attention_mask": attention_mask, **{name: kwargs.get(name) for name in _SPECIAL}}
    for name, given in special.items():
        if given is not None:
            raise ConfigError(f"needs {name} in its attention, which paged attention does not have")
    if not getattr(module, "is_causal", True):
        raise ConfigError("has attention that is not causal")
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    call = AttentionCall(
        q_heads=q.shape[1],
        kv_heads=k.shape[1],
        k_dim=k.shape[2],
        v_dim=v.shape[2],
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=sliding_window,
        softcap=softcap,
    )
    return baton_attend.attend(module.layer_idx, q, k, v, call).unsqueeze(0), None  # type: ignore[arg-type]


class AttentionProbe:
    """Records how each layer calls its attention."""

    def __init__(self) -> None:
        self.calls: dict[int, AttentionCall] = {}

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall
    ) -> torch.Tensor:
        if layer in self.calls:
            raise ConfigError("attends more than once in a layer")
        self.calls[layer] = call
        return q.new_zeros(q.shape[0], call.q_heads, call.v_dim)


class PagedStep:
    """One step on our pool. `scale` is what the planner was told; a layer with another one has its queries scaled."""

    def __init__(self, step: StepAttention, scale: float, kv_write: KVWrite) -> None:
        self._step = step
        self._scale = scale
        self._kv_write = kv_write

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall
    ) -> torch.Tensor:
        self._kv_write(k, v, *self._step.pages(layer), *self._step.write_places(layer))
        if call.scale != self._scale:
            q = q * (call.scale / self._scale)
        return self._step.attend(layer, q, (k, v))
