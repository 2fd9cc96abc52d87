"""What distinguishes one dense decoder from another, as data: `DecoderConfig`, read from Hugging Face's config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from baton_serving.errors import ConfigError
from baton_serving.model.quantization_config import checkpoint_quantization
from baton_serving.model.rope import RopeConfig, read_rope
from baton_serving.model.text_config import (
    FULL,
    SLIDING,
    Gemma3Text,
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    TextConfig,
    read_text_config,
)


@dataclass(frozen=True)
class DecoderConfig:
    """One dense decoder: pre-norm blocks of grouped-query attention and a gated MLP.

    `windows[i]` is layer i's sliding window in tokens, the query included, or None; `ropes[i]` its rotary embedding.
    Norm weights are used as `weight + norm_offset`. `sandwich_norms` adds a norm after attention and after the MLP.
    `embed_scale` multiplies the embeddings, `attention_scale` the scores. `dtype` is the checkpoint's, or None; so is
    `quantization` ("fp8": the layers' weights are 8-bit floats).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    q_heads: int
    kv_heads: int
    head_dim: int
    activation: str
    norm_eps: float
    windows: tuple[int | None, ...]
    ropes: tuple[RopeConfig, ...]
    max_positions: int
    attention_scale: float
    tie_embeddings: bool
    eos_token_ids: tuple[int, ...]
    dtype: str | None
    norm_offset: float = 0.0
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    sandwich_norms: bool = False
    embed_scale: float = 1.0
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    quantization: str | None = None

    @property
    def layers(self) -> int:
        return len(self.windows)


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def _features(config: TextConfig) -> dict[str, Any]:
    """The fields of DecoderConfig in which the architectures differ."""
    match config:
        case Llama():
            return {
                "qkv_bias": config.attention_bias,
                "output_bias": config.attention_bias,
                "mlp_bias": config.mlp_bias,
            }
        case Qwen3():
            return {"qkv_bias": config.attention_bias, "output_bias": config.attention_bias, "qk_norm": True}
        case Qwen2():
            return {"qkv_bias": True}
        case Mistral():
            return {"windows": (config.sliding_window,) * config.num_hidden_layers}
        case Gemma3Text():
            return _gemma3(config)
    raise AssertionError(config)


def _gemma3(config: Gemma3Text) -> dict[str, Any]:
    if config.use_bidirectional_attention:
        raise ConfigError("Gemma3 with use_bidirectional_attention is an encoder: it can't generate text")
    return {
        "activation": _activation(config.hidden_activation),
        "qkv_bias": config.attention_bias,
        "output_bias": config.attention_bias,
        "qk_norm": True,
        "norm_offset": 1.0,
        "sandwich_norms": True,
        "embed_scale": config.hidden_size**0.5,
        "attention_scale": config.query_pre_attn_scalar**-0.5,
        "attention_softcap": config.attn_logit_softcapping,
        "logits_softcap": config.final_logit_softcapping,
    }


_ARCHITECTURES: Mapping[str, type[TextConfig]] = MappingProxyType(
    {
        "LlamaForCausalLM": Llama,
        "Qwen2ForCausalLM": Qwen2,
        "Qwen3ForCausalLM": Qwen3,
        "MistralForCausalLM": Mistral,
        "Gemma3ForCausalLM": Gemma3Text,
        "Gemma3ForConditionalGeneration": Gemma3Text,
    }
)


def read_config_json(path: Path, overrides: Mapping[str, object] | None = None) -> dict[str, Any]:
    """config.json of a checkpoint directory with `overrides` laid over it, nested objects merged (ConfigError)."""
    file = path / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no config.json here; give the directory of a Hugging Face checkpoint") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must be a JSON object, not {type(values).__name__}")
    return _merge(values, overrides or {})


def supports(architecture: str) -> bool:
    """Whether our decoder runs this Hugging Face architecture."""
    return architecture in _ARCHITECTURES


def architecture_of(values: Mapping[str, Any], origin: str) -> str:
    """The first entry of `architectures` (ConfigError if there is none)."""
    architectures = values.get("architectures") or []
    if not architectures or not isinstance(architectures[0], str):
        raise ConfigError(f"{origin}: `architectures` is missing; name the model class, such as LlamaForCausalLM")
    return str(architectures[0])


def decoder_config(values: Mapping[str, Any], origin: str, max_positions: int | None = None) -> DecoderConfig:
    """Describe a checkpoint for our decoder.

    `max_positions` overrides the model's own context length. ConfigError for an architecture or a feature that the
    decoder does not have.
    """
    architecture = architecture_of(values, origin)
    if not supports(architecture):
        raise ConfigError(
            f"{origin}: architecture {architecture} is not supported (supported: {', '.join(sorted(_ARCHITECTURES))}); "
            "try --model-impl transformers"
        )
    quantization = checkpoint_quantization(values, origin)
    config = read_text_config(values, _ARCHITECTURES[architecture], origin)
    features = _common(config, origin, max_positions) | _features(config)
    result = DecoderConfig(architecture=architecture, quantization=quantization, **features)
    if result.q_heads % result.kv_heads:
        raise ConfigError(f"{origin}: {result.q_heads} query heads are not a multiple of {result.kv_heads} kv-heads")
    return result


def _common(config: TextConfig, origin: str, max_positions: int | None) -> dict[str, Any]:
    kinds = config.kinds()
    unknown = sorted(set(kinds) - {FULL, SLIDING})
    if unknown:
        raise ConfigError(f"{origin}: layer type {unknown[0]!r} is not supported; try --model-impl transformers")
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    trained = config.max_position_embeddings
    positions = max_positions or trained
    ropes = {kind: read_rope(config.rope(kind), head_dim, trained, positions, origin) for kind in set(kinds)}
    eos = config.eos_token_id
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "q_heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads or config.num_attention_heads,
        "head_dim": head_dim,
        "activation": _activation(config.hidden_act),
        "norm_eps": config.rms_norm_eps,
        "windows": tuple(config.sliding_window if kind == SLIDING else None for kind in kinds),
        "ropes": tuple(ropes[kind] for kind in kinds),
        "max_positions": positions,
        "attention_scale": head_dim**-0.5,
        "tie_embeddings": config.tie_word_embeddings,
        "eos_token_ids": tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        "dtype": config.dtype or config.torch_dtype,
    }


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise ConfigError(f"Activation {name!r} is not supported; try --model-impl transformers")
    return _ACTIVATIONS[name]


def _merge(values: dict[str, Any], overrides: Mapping[str, object]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in overrides.items():
        current = merged.get(key)
        merged[key] = _merge(current, value) if isinstance(current, dict) and isinstance(value, Mapping) else value
    return merged
