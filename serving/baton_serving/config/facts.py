"""What `config.resolve` must know of the machine and the model. Plain values: resolving stays pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HostFacts:
    """The machine as a worker finds it at start.

    `host_memory` and `device_memory` are the bytes free now, the latter on the fullest visible GPU (0 without one).
    `compute_capability` is that GPU's, as (major, minor). `entropy` is a fresh random number below 2^31.
    """

    host_memory: int
    cuda_devices: int = 0
    device_memory: int = 0
    compute_capability: tuple[int, int] = (0, 0)
    has_flashinfer: bool = False
    entropy: int = 0


@dataclass(frozen=True)
class ModelFacts:
    """The model as its config.json describes it, `--json-model-override-args` included.

    `dtype` is the checkpoint's type as torch names it. `parameters` counts weights, `kv_values_per_token` the numbers
    that one token's KV holds over all layers and heads. `layer_parameters` are those of the projections, which
    `quantization` ("fp8" or None) is about.
    """

    architecture: str
    context_length: int
    dtype: str
    attention_heads: int
    kv_heads: int
    parameters: int
    kv_values_per_token: int
    layer_parameters: int = 0
    quantization: str | None = None
