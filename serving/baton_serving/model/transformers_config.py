"""config.json as transformers reads it: for the models that run through the fallback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PretrainedConfig

from baton_serving.errors import ConfigError


def parse_config(values: Mapping[str, Any], origin: str) -> PretrainedConfig:
    """The transformers config of config.json's `values`; `origin` names them in a ConfigError."""
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ConfigError(
            f"{origin}: transformers knows no model_type {model_type!r}; check it or upgrade transformers"
        )
    try:
        config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(dict(values))
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{origin}: transformers refuses it: {' '.join(str(error).split())}") from error
    return config
