"""What config.json says of quantised weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton_serving.errors import ConfigError

QUANTIZATIONS = ("fp8",)
_METHODS = frozenset({"fp8", "compressed-tensors", "fbgemm_fp8", "modelopt"})


def checkpoint_quantization(values: Mapping[str, Any], origin: str) -> str | None:
    """What config.json says its weights are: "fp8", or None for plain numbers (ConfigError for anything else)."""
    described = values.get("quantization_config") or values.get("compression_config")
    if not described:
        return None
    method = described.get("quant_method") if isinstance(described, Mapping) else described
    if not isinstance(described, Mapping) or method not in _METHODS or not _is_fp8(method, described):
        raise ConfigError(
            f"{origin}: weights quantised with {method!r} are not supported like this (8-bit floats with a scale per "
            "tensor or per output are); use the model's plain weights, with --quantization fp8 if they must be small"
        )
    return "fp8"


def _is_fp8(method: str, described: Mapping[str, Any]) -> bool:
    if method == "compressed-tensors":
        groups = described.get("config_groups") or {}
        weights = [group.get("weights") or {} for group in groups.values()]
        return bool(weights) and all(
            each.get("type") == "float" and each.get("num_bits") == 8 and each.get("strategy") in ("tensor", "channel")
            for each in weights
        )
    if method == "modelopt":
        return described.get("quant_algo") == "FP8"
    return not described.get("weight_block_size")
