"""Facts that the configuration is resolved with: this machine, and the checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baton_serving.config import ModelFacts, ResolvedConfig, ServerConfig, resolve
from baton_serving.config.check import json_object
from baton_serving.kv.layout import DTYPE_BYTES
from baton_serving.model.config import (
    DecoderConfig,
    architecture_of,
    decoder_config,
    read_config_json,
    supports,
)
from baton_serving.runtime.host import probe_host
from baton_serving.runtime.locate import locate


def resolve_here(config: ServerConfig) -> ResolvedConfig:
    """Resolve `config` for this machine and its model, which is fetched first when it is a hub name (ConfigError)."""
    located = locate(config)
    overrides = json_object("--json-model-override-args", config.model.json_model_override_args)
    return resolve(located, probe_host(), model_facts(Path(located.model.model_path), overrides))


def model_facts(path: Path, overrides: Mapping[str, object]) -> ModelFacts:
    """The model as its config.json describes it (ConfigError when it does not)."""
    values = read_config_json(path, overrides)
    origin = str(path / "config.json")
    if supports(architecture_of(values, origin)):
        return _decoder_facts(decoder_config(values, origin))
    return _other_facts(values, origin, path)


def _decoder_facts(config: DecoderConfig) -> ModelFacts:
    hidden, dim = config.hidden_size, config.head_dim
    attention = hidden * dim * (2 * config.q_heads + 2 * config.kv_heads)
    per_layer = attention + 3 * hidden * config.intermediate_size
    embeddings = config.vocab_size * hidden * (1 if config.tie_embeddings else 2)
    return ModelFacts(
        architecture=config.architecture,
        context_length=config.max_positions,
        dtype=config.dtype or "float32",
        attention_heads=config.q_heads,
        kv_heads=config.kv_heads,
        parameters=config.layers * per_layer + embeddings,
        kv_values_per_token=config.layers * config.kv_heads * dim * 2,
        layer_parameters=config.layers * per_layer,
        quantization=config.quantization,
    )


def _other_facts(values: Mapping[str, Any], origin: str, path: Path) -> ModelFacts:
    """For the transformers fallback: what every decoder's config says, and the size of its files."""
    from baton_serving.model.transformers_config import parse_config  # seconds to import; our decoder never needs it

    text = parse_config(values, origin).get_text_config(decoder=True)
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    dtype = str(getattr(text, "dtype", None) or "float32").removeprefix("torch.")
    weights = [*path.glob("*.safetensors")] or [*path.glob("*.bin"), *path.glob("*.pt")]
    return ModelFacts(
        architecture=architecture_of(values, origin),
        context_length=text.max_position_embeddings,
        dtype=dtype,
        attention_heads=heads,
        kv_heads=kv_heads,
        parameters=sum(file.stat().st_size for file in weights) // DTYPE_BYTES.get(dtype, 2),
        kv_values_per_token=text.num_hidden_layers * kv_heads * dim * 2,
    )
