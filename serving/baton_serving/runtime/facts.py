"""Facts that the configuration is resolved with: this machine, and the checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from baton_serving.config import ModelFacts, ResolvedConfig, ServerConfig, resolve
from baton_serving.config.check import json_object
from baton_serving.errors import ConfigError
from baton_serving.kv.layout import DTYPE_BYTES
from baton_serving.model.config import (
    DecoderConfig,
    architecture_of,
    decoder_config,
    parse_config,
    read_config_json,
    supports,
)
from baton_serving.runtime.host import probe_host


def resolve_here(config: ServerConfig) -> ResolvedConfig:
    """Resolve `config` for this machine and its model, which is fetched first when it is a hub name (ConfigError)."""
    path = local_checkpoint(config.model.model_path, config.model.revision)
    overrides = json_object("--json-model-override-args", config.model.json_model_override_args)
    resolved = resolve(config, probe_host(), model_facts(path, overrides))
    located = replace(config, model=replace(config.model, model_path=str(path)))
    tokenizer_path = config.model.tokenizer_path or str(path)
    return replace(resolved, given=located, tokenizer_path=tokenizer_path)


def local_checkpoint(model_path: str, revision: str | None) -> Path:
    """The folder of a checkpoint: `model_path` itself, or a snapshot of that name from the Hugging Face hub."""
    if not model_path:
        raise ConfigError("--model-path is missing: give the folder of a checkpoint or its name on the hub")
    path = Path(model_path)
    if path.is_dir():
        return path.resolve()
    if path.exists() or model_path.startswith((".", "/", "~")) or model_path.count("/") != 1:
        raise ConfigError(f"--model-path {model_path}: there is no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.bin", "*.pt", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(model_path, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--model-path {model_path}: no such folder, and the hub says: {reason}") from error


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
    )


def _other_facts(values: Mapping[str, Any], origin: str, path: Path) -> ModelFacts:
    """For the transformers fallback: what every decoder's config says, and the size of its files."""
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
