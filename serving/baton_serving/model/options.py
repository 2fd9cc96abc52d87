"""What `load_model` is asked for and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from baton_serving.errors import ConfigError
from baton_serving.kv.layout import KV_DTYPES, KVGroup, KVLayout
from baton_serving.model.attention import AttentionHeads
from baton_serving.model.decoder import CausalModel
from baton_serving.model.digest import setting_leaves
from baton_serving.model.parallel import ParallelState

DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
}
MODEL_IMPLS = ("auto", "transformers")


@dataclass(frozen=True)
class ModelOptions:
    """What to load and how.

    `dtype` "auto" is the checkpoint's own, except on the CPU, where it is float32: half precision is slower there.
    `kv_cache_dtype` "auto" is the model's dtype. `overrides` is laid over config.json. `max_positions` is the context
    length wanted if it differs from the model's. `seed` makes dummy weights. `tokenizer_path` (default: the model's)
    and `chat_template` enter the digest only. `quantization` "fp8" turns the layers' weights into 8-bit floats as they
    are read. With `deterministic` a token's numbers do not depend on what else is in its batch.
    `model_impl` "auto" is our decoder, "transformers" the fallback.
    """

    path: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: str = "auto"
    load_format: str = "auto"
    model_impl: str = "auto"
    overrides: Mapping[str, object] = field(default_factory=dict)
    max_positions: int | None = None
    seed: int = 0
    use_mmap: bool = True
    page_size: int = 16
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    deterministic: bool = False
    tokenizer_path: Path | None = None
    chat_template: str | None = None
    parallel: ParallelState = field(default_factory=ParallelState)

    def setting_leaves(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        """What the digest covers besides tensors, for this `config` (config.json after overrides)."""
        return setting_leaves(config, self.tokenizer_path or self.path, self.chat_template)

    def resolve_dtype(self, own: str | None) -> torch.dtype:
        """The model's dtype, given the checkpoint's `own` (ConfigError for an unknown one)."""
        name = self.dtype
        if name == "auto":
            name = "float32" if self.device.type == "cpu" else own or "bfloat16"
        if name not in DTYPES:
            raise ConfigError(f"--dtype {name} is not one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]

    def kv_layout(
        self, kv_heads: int, k_dim: int, v_dim: int, groups: tuple[KVGroup, ...], dtype: torch.dtype
    ) -> KVLayout:
        """The layout of a model's KV in the asked-for page size and dtype (ConfigError)."""
        name = str(dtype).removeprefix("torch.")
        if self.kv_cache_dtype != "auto":
            if self.kv_cache_dtype not in KV_DTYPES:
                raise ConfigError(f"--kv-cache-dtype {self.kv_cache_dtype} is not one of auto, {', '.join(KV_DTYPES)}")
            name = KV_DTYPES[self.kv_cache_dtype]
        return KVLayout(self.page_size, kv_heads, k_dim, v_dim, name, groups)


@dataclass(frozen=True)
class ModelInfo:
    """What the rest of a worker asks about a model, whichever implementation runs it.

    `eos_token_ids` are those of config.json and generation_config.json.
    """

    architecture: str
    vocab_size: int
    max_positions: int
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device. `kv_layout` is of the whole model; `heads` is what an AttentionPlanner needs.

    `digest` is the content digest in hex, the same on every rank; `leaves`, on a node's first rank
    alone, is what it is the root of.
    """

    model: CausalModel
    info: ModelInfo
    heads: AttentionHeads
    kv_layout: KVLayout
    digest: str
    leaves: Mapping[str, bytes] = field(default_factory=dict)
