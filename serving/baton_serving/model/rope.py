"""Rotary embedding parameters of a model and the angular frequencies they give.

Sources: linear scaling (kaiokendev), dynamic NTK (bloc97, emozilla), YaRN (Peng et al. 2023,
https://arxiv.org/abs/2309.00071), Llama 3.1's piecewise scaling; parameter names as in transformers' `rope_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from baton_serving.errors import ConfigError


@dataclass(frozen=True)
class RopeConfig:
    """`rotary_dim` values of each head turn with base `theta`; `kind` and `parameters` say how angles are scaled.

    `trained_positions` is the context length before scaling, `max_positions` the longest that will be used.
    """

    theta: float
    rotary_dim: int
    trained_positions: int
    max_positions: int
    kind: str = "default"
    parameters: tuple[tuple[str, float | bool], ...] = ()


def read_rope(
    given: Mapping[str, object], head_dim: int, model_positions: int, max_positions: int, origin: str
) -> RopeConfig:
    """The rotary embedding that `rope_parameters` describe; the model has `model_positions` positions (ConfigError)."""
    kind = str(given.get("rope_type", "default"))
    if kind not in _SCALINGS:
        raise ConfigError(
            f"{origin}: rope type {kind!r} is not supported (supported: {', '.join(_SCALINGS)}); "
            "try --model-impl transformers"
        )
    known = ("rope_theta", "rope_type", "type", "partial_rotary_factor")
    parameters = {key: value for key, value in given.items() if key not in known and isinstance(value, int | float)}
    trained = parameters.pop("original_max_position_embeddings", None) or model_positions
    missing = _SCALINGS[kind].needs - parameters.keys()
    if missing:
        raise ConfigError(f"{origin}: rope type {kind!r} needs `{min(missing)}` in rope_parameters")
    theta, factor = given.get("rope_theta"), given.get("partial_rotary_factor", 1.0)
    if not isinstance(theta, int | float) or not isinstance(factor, int | float):
        raise ConfigError(f"{origin}: rope_parameters needs a number as `rope_theta`")
    return RopeConfig(
        theta=float(theta),
        rotary_dim=int(head_dim * factor),
        trained_positions=int(trained),
        max_positions=max_positions,
        kind=kind,
        parameters=tuple(sorted(parameters.items())),
    )


def frequencies(rope: RopeConfig) -> tuple[torch.Tensor, float]:
    """Angular frequencies float32 `[rotary_dim / 2]` in radians per position, and the amplitude of cos and sin."""
    return _SCALINGS[rope.kind].compute(rope, dict(rope.parameters))


def _plain(rope: RopeConfig, theta: float | None = None) -> torch.Tensor:
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.int64).float() / rope.rotary_dim
    return 1.0 / ((rope.theta if theta is None else theta) ** exponents)


def _default(rope: RopeConfig, parameters: Mapping[str, float]) -> tuple[torch.Tensor, float]:
    return _plain(rope), 1.0


def _linear(rope: RopeConfig, parameters: Mapping[str, float]) -> tuple[torch.Tensor, float]:
    return _plain(rope) / parameters["factor"], 1.0


def _dynamic(rope: RopeConfig, parameters: Mapping[str, float]) -> tuple[torch.Tensor, float]:
    """The base grows with the longest context in use; it is fixed here, since cached keys can't be turned again."""
    factor, longest = parameters["factor"], max(rope.max_positions, rope.trained_positions)
    growth = factor * longest / rope.trained_positions - (factor - 1)
    return _plain(rope, rope.theta * growth ** (rope.rotary_dim / (rope.rotary_dim - 2))), 1.0


def _llama3(rope: RopeConfig, parameters: Mapping[str, float]) -> tuple[torch.Tensor, float]:
    factor, low, high = parameters["factor"], parameters["low_freq_factor"], parameters["high_freq_factor"]
    plain = _plain(rope)
    turns = rope.trained_positions * plain / (2 * math.pi)  # full turns within the trained context
    blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * plain / factor + blend * plain, 1.0


def _yarn(rope: RopeConfig, parameters: Mapping[str, float]) -> tuple[torch.Tensor, float]:
    factor = parameters["factor"]
    beta_fast, beta_slow = parameters.get("beta_fast") or 32.0, parameters.get("beta_slow") or 1.0

    def dimension(turns: float) -> float:
        """The dimension whose frequency makes `turns` turns within the trained context."""
        positions = rope.trained_positions / (turns * 2 * math.pi)
        return rope.rotary_dim * math.log(positions) / (2 * math.log(rope.theta))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    span = high - low or 0.001
    ramp = ((torch.arange(rope.rotary_dim // 2, dtype=torch.float32) - low) / span).clamp(0.0, 1.0)
    plain = _plain(rope)
    return plain / factor * ramp + plain * (1 - ramp), _yarn_amplitude(factor, parameters)


def _yarn_amplitude(factor: float, parameters: Mapping[str, float]) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if parameters.get("attention_factor") is not None:
        return parameters["attention_factor"]
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return mscale(parameters["mscale"]) / mscale(parameters["mscale_all_dim"])
    return mscale(1.0)


@dataclass(frozen=True)
class _Scaling:
    compute: Callable[[RopeConfig, Mapping[str, float]], tuple[torch.Tensor, float]]
    needs: frozenset[str] = frozenset()


_SCALINGS: Mapping[str, _Scaling] = MappingProxyType(
    {
        "default": _Scaling(_default),
        "linear": _Scaling(_linear, frozenset({"factor"})),
        "dynamic": _Scaling(_dynamic, frozenset({"factor"})),
        "llama3": _Scaling(_llama3, frozenset({"factor", "low_freq_factor", "high_freq_factor"})),
        "yarn": _Scaling(_yarn, frozenset({"factor"})),
    }
)
