"""Random small checkpoints in Hugging Face format, one per architecture, for tests that need a real model on disk.

The weights are random but loud (norms, biases and q/k norms too), so that attention is far from uniform and a tensor
that went to the wrong place changes the logits by much more than the tolerance of a test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCAB_SIZE = 256
MAX_POSITIONS = 1024

_COMMON: dict[str, object] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"

# What each kind changes in _COMMON. The first five run on our decoder, the others only through transformers.
_KINDS: dict[str, dict[str, object]] = {
    "llama": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "num_attention_heads": 6},
    "mistral": {"model_type": "mistral", "sliding_window": 40, "head_dim": 24},
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 12,
        "head_dim": 32,
        "sliding_window": 24,
        "query_pre_attn_scalar": 20,
        "final_logit_softcapping": 30.0,
        "layer_types": ([_SLIDING] * 5 + [_FULL]) * 2,
    },
    "phi3": {"model_type": "phi3", "tie_word_embeddings": False, "original_max_position_embeddings": MAX_POSITIONS},
    "olmo2": {"model_type": "olmo2"},
    "stablelm": {"model_type": "stablelm", "use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "gpt2": {"model_type": "gpt2", "num_key_value_heads": None, "scale_attn_by_inverse_layer_idx": True},
    "gpt_neox": {"model_type": "gpt_neox", "num_key_value_heads": None, "rotary_pct": 0.5},
}

DECODER_KINDS = ("llama", "qwen2", "qwen3", "mistral", "gemma3")
FALLBACK_KINDS = ("phi3", "olmo2", "gpt2", "gpt_neox")  # stablelm is one that the interface can't serve


def tiny_config(kind: str, overrides: Mapping[str, object] | None = None) -> PretrainedConfig:
    """The transformers config of one kind (see DECODER_KINDS, FALLBACK_KINDS) with `overrides` applied."""
    values = {**_COMMON, **_KINDS[kind], **(overrides or {})}
    values = {key: value for key, value in values.items() if value is not None}
    return AutoConfig.for_model(str(values.pop("model_type")), **values)


def tiny_model(kind: str, seed: int = 0, overrides: Mapping[str, object] | None = None) -> PreTrainedModel:
    """A float32 transformers model in eval mode with random weights that depend on `kind`, `seed` and `overrides`."""
    config = tiny_config(kind, overrides)
    factory: Any = AutoModelForCausalLM
    model: PreTrainedModel = factory.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                mean = 1.0 if name.endswith("norm.weight") and "gemma" not in config.model_type else 0.0
                parameter.copy_(mean + 0.2 * noise)
            else:
                parameter.copy_(noise * (2.0 / parameter.shape[-1] ** 0.5))
    return model


def write_tiny_checkpoint(
    kind: str,
    path: Path,
    seed: int = 0,
    *,
    overrides: Mapping[str, object] | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
) -> Path:
    """Write config.json and safetensors of a random small model to `path` (created) and return it.

    There is no tokenizer: prompts are token ids below VOCAB_SIZE. `max_shard_size` such as "50KB" gives a sharded
    checkpoint with an index. The same arguments give the same bytes.
    """
    model = tiny_model(kind, seed, overrides)
    model.to(dtype)  # type: ignore[arg-type]
    model.save_pretrained(path, max_shard_size=max_shard_size)
    config_file = path / "config.json"
    config = json.loads(config_file.read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return path
