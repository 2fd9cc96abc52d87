"""Custom logit processors: functions of the server's operator that requests may ask for by name.

A request never brings code. (SGLang takes a pickled callable from the client; whoever can send it a request can run
anything in the worker. Here a request sends a name and `custom_params`, which are plain JSON.) A processor sees what
clients send, so its failure is the failure of the requests that asked for it, never of the worker.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from baton_serving.errors import ConfigError

# (logits float32 [n, vocab], the n rows' custom_params) -> logits float32 [n, vocab], changed in place or not.
LogitProcessor = Callable[[Tensor, Sequence[Mapping[str, object]]], Tensor]


logger = logging.getLogger(__name__)


def apply_processor(
    name: str, function: LogitProcessor, logits: Tensor, params: Sequence[Mapping[str, object]]
) -> Tensor | None:
    """The processed `logits` [n, vocab] as float32, or None (and a log entry) when the processor failed."""
    try:
        processed = function(logits, params)
        if processed.shape != logits.shape:
            raise ValueError(f"it returned shape {tuple(processed.shape)} for {tuple(logits.shape)}")
        return processed.float()
    except Exception:  # the border to code that is not ours
        logger.exception("custom logit processor %r failed; so do the requests that asked for it", name)
        return None


def disallowed_tokens(logits: Tensor, params: Sequence[Mapping[str, object]]) -> Tensor:
    """Never sample the ids in `custom_params["token_ids"]`."""
    for row, wanted in enumerate(params):
        ids = wanted.get("token_ids", [])
        vocab = logits.shape[1]
        if isinstance(ids, list):
            valid = [token for token in ids if isinstance(token, int) and 0 <= token < vocab]
            logits[row, torch.tensor(valid, dtype=torch.int64, device=logits.device)] = -torch.inf
    return logits


BUILT_IN: Mapping[str, LogitProcessor] = {"disallowed_tokens": disallowed_tokens}


def load_processors(specs: Sequence[str]) -> dict[str, LogitProcessor]:
    """The built-in processors and those of `specs`, each `name=module:function`, given by the operator at start-up.

    Raises ConfigError for a spec that names nothing callable.
    """
    processors = dict(BUILT_IN)
    for spec in specs:
        name, _, target = spec.partition("=")
        module_name, _, function_name = target.partition(":")
        if not (name and module_name and function_name):
            raise ConfigError(f"custom logit processor {spec!r}: write it as name=module:function")
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"custom logit processor {spec!r} cannot be loaded: {error}") from error
        if not callable(function):
            raise ConfigError(f"custom logit processor {spec!r}: {function_name} is not a function")
        processors[name] = function
    return processors
