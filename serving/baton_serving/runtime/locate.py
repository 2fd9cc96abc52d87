"""Where a checkpoint is on this machine; one that is named by its hub name is fetched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from baton_serving.config import ServerConfig
from baton_serving.errors import ConfigError
from baton_serving.runtime.s3 import SCHEME, s3_checkpoint

PATTERNS: Final = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.model", "*.txt", "*.jinja")  # what a worker reads


def locate(config: ServerConfig) -> ServerConfig:
    """`config` with folders for what it names: the checkpoint, fetched if need be, and its tokenizer (ConfigError).

    The served name stays what the caller called the model.
    """
    path = str(local_checkpoint(config.model.model_path, config.model.revision))
    tokenizer_path = config.model.tokenizer_path or path
    served = config.api.served_model_name or config.model.model_path
    return replace(
        config,
        model=replace(config.model, model_path=path, tokenizer_path=tokenizer_path),
        api=replace(config.api, served_model_name=served),
    )


def local_checkpoint(model_path: str, revision: str | None) -> Path:
    """The folder of a checkpoint: `model_path` itself, or a copy of one in an S3 bucket or on the Hugging Face hub."""
    if not model_path:
        raise ConfigError("--model-path is missing: give the folder of a checkpoint or its name on the hub")
    if model_path.startswith(SCHEME):
        if revision is not None:
            raise ConfigError(f"--model-path {model_path}: leave out --revision, which is for the hub")
        return s3_checkpoint(model_path, PATTERNS)
    path = Path(model_path)
    if path.is_dir():
        return path.resolve()
    if path.exists() or model_path.startswith((".", "/", "~")) or model_path.count("/") != 1:
        raise ConfigError(f"--model-path {model_path}: there is no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_path, revision=revision, allow_patterns=list(PATTERNS)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--model-path {model_path}: no such folder, and the hub says: {reason}") from error
