"""Any other decoder through transformers: its modules compute, our pages hold the KV.

All new tokens of a step go through the model as one sequence `[1, tokens]` with their own position ids, and its
attention modules call our function (`transformers_attention`). What a layer needs (heads, window, scale) is found by
running the model once with a probe. Source of the interface:
https://huggingface.co/docs/transformers/transformers_as_backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from baton_kernels.kv_write import KV_WRITE
from baton_serving.errors import ConfigError
from baton_serving.kv.layout import group_layers
from baton_serving.model.attention import AttentionHeads, StepAttention
from baton_serving.model.batch import ForwardBatch
from baton_serving.model.checkpoint import Checkpoint, DummyCheckpoint, open_checkpoint
from baton_serving.model.config import architecture_of
from baton_serving.model.options import LoadedModel, ModelInfo, ModelOptions
from baton_serving.model.transformers_attention import (
    INTERFACE,
    Attend,
    AttentionCall,
    AttentionProbe,
    PagedStep,
    register_interface,
)
from baton_serving.model.transformers_config import parse_config

_LAYER_TYPES = {"full_attention", "sliding_attention"}


class _Given(nn.Module):
    """Stands in for the decoder stack inside a CausalLM module and returns the hidden states it is given."""

    def __init__(self, output_type: type[ModelOutput]) -> None:
        super().__init__()
        self._output_type = output_type

    def forward(self, *args: Any, baton_hidden: torch.Tensor, **kwargs: Any) -> ModelOutput:
        return self._output_type(last_hidden_state=baton_hidden)


class TransformersModel:
    """A transformers model behind the `CausalModel` contract.

    It is cut in two: the decoder stack, and the CausalLM module around it with `_Given` in the stack's place, so that
    whatever a model does to its logits (caps, scales) is done by its own code.
    """

    capturable = False

    def __init__(self, stack: nn.Module, head: PreTrainedModel, scale: float) -> None:
        self._stack = stack
        self._head = head
        self._scale = scale
        self._kv_write = KV_WRITE.select(head.device, head.dtype)

    def hidden_states(self, batch: ForwardBatch, attention: StepAttention) -> torch.Tensor:
        step = PagedStep(attention, self._scale, self._kv_write)
        hidden: torch.Tensor = _run(self._stack, batch.input_ids, batch.positions, step).last_hidden_state
        return hidden[0] if batch.logits_rows is None else hidden[0].index_select(0, batch.logits_rows)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._head(use_cache=False, baton_hidden=hidden.unsqueeze(0)).logits
        return logits[0].float()


def _run(module: nn.Module, input_ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> Any:
    return module(
        input_ids=input_ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False, baton_attend=attend
    )


def load_fallback(options: ModelOptions, values: Mapping[str, Any], origin: str) -> tuple[LoadedModel, Checkpoint]:
    """Load a checkpoint through transformers; ConfigError names a model that the attention interface can't serve."""
    architecture = architecture_of(values, origin)
    if options.parallel.tp_size > 1:
        raise ConfigError("--model-impl transformers runs on one rank: leave --tp-size at 1")
    config = parse_config(values, origin)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None:
        raise ConfigError(f"{origin}: transformers has no causal language model for {architecture}")
    if not model_class._supports_attention_backend:
        raise ConfigError(f"{architecture}: transformers runs it without its attention interface, so Baton can't")
    register_interface()
    dtype = options.resolve_dtype(str(config.dtype).removeprefix("torch.") if config.dtype else None)
    module, checkpoint = _load_module(model_class, config, options, dtype)
    try:
        model, layers = _take_apart(module, config)
    except ConfigError as error:
        raise ConfigError(f"{architecture} {error.message}, so Baton can't run it") from error
    except (AttributeError, TypeError, ValueError, RuntimeError, LookupError) as error:
        raise ConfigError(f"{architecture} fails on a flat batch, so Baton can't run it: {error!r}") from error
    first = layers[0]
    eos = config.eos_token_id
    loaded = LoadedModel(
        model=model,
        info=ModelInfo(
            architecture=architecture,
            vocab_size=config.get_text_config(decoder=True).vocab_size,
            max_positions=options.max_positions or config.get_text_config(decoder=True).max_position_embeddings,
            eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
            dtype=dtype,
        ),
        heads=AttentionHeads(first.q_heads, first.scale, first.softcap, dtype),
        kv_layout=options.kv_layout(
            first.kv_heads, first.k_dim, first.v_dim, group_layers([call.window for call in layers]), dtype
        ),
        digest="",
    )
    return loaded, checkpoint


def _take_apart(module: PreTrainedModel, config: PretrainedConfig) -> tuple[TransformersModel, list[AttentionCall]]:
    """The model in its two halves and its layers' calls; ConfigError unless the halves make the whole."""
    tokens = torch.arange(2, device=module.device)
    probe = AttentionProbe()
    with torch.inference_mode():
        whole = _run(module, tokens, tokens, AttentionProbe()).logits[0].float()
        stack = module.get_decoder()
        output = _run(stack, tokens, tokens, probe)
        layers = _layer_calls(probe.calls, config)
        name = next(name for name, child in module.named_modules() if child is stack)
        module.set_submodule(name, _Given(type(output)))
        model = TransformersModel(stack, module, layers[0].scale)
        halves = model.logits(output.last_hidden_state[0])
    if not torch.allclose(whole, halves):
        raise ConfigError("does more than transformers' convention between its layers and its logits")
    return model, layers


def _layer_calls(calls: Mapping[int, AttentionCall], config: PretrainedConfig) -> list[AttentionCall]:
    """The calls in layer order; ConfigError unless one pool and one planner can serve them all."""
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or []
    unknown = sorted(set(kinds) - _LAYER_TYPES)
    if unknown:
        raise ConfigError(f"has layers of type {unknown[0]!r}")
    if sorted(calls) != list(range(text.num_hidden_layers)):
        raise ConfigError(f"calls the attention interface in {len(calls)} of its {text.num_hidden_layers} layers")
    layers = [calls[index] for index in range(len(calls))]
    if len({(call.q_heads, call.kv_heads, call.k_dim, call.v_dim, call.softcap) for call in layers}) > 1:
        raise ConfigError("has layers of different head counts, dimensions or softcaps")
    for call, kind in zip(layers, kinds, strict=False):
        if (kind == "sliding_attention") != (call.window is not None):
            raise ConfigError("does not tell its attention about its sliding windows")
    return layers


def _load_module(
    model_class: Any, config: PretrainedConfig, options: ModelOptions, dtype: torch.dtype
) -> tuple[PreTrainedModel, Checkpoint]:
    checkpoint: Checkpoint
    if options.load_format == "dummy":
        module = model_class._from_config(config, attn_implementation=INTERFACE, dtype=dtype)
        shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        checkpoint = DummyCheckpoint(shapes, options.seed, 1.0, torch.device("cpu"))
        for name, parameter in module.named_parameters():
            parameter.data.copy_(checkpoint.read(name, 0, 0, parameter.shape[0]))
    else:
        checkpoint = open_checkpoint(options.path, options.load_format, options.use_mmap)
        module = _from_pretrained(model_class, config, options.path, options.load_format, dtype)
    module.eval().requires_grad_(False)
    return module.to(options.device), checkpoint


def _from_pretrained(
    model_class: Any, config: PretrainedConfig, path: Path, load_format: str, dtype: torch.dtype
) -> PreTrainedModel:
    try:
        module, report = model_class.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=INTERFACE,
            local_files_only=True,
            use_safetensors={"safetensors": True, "pt": False}.get(load_format),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"{path}: transformers can't load it: {' '.join(str(error).split())}") from error
    for name, found, wanted in report["mismatched_keys"]:
        raise ConfigError(f"{path}: tensor {name!r} has shape {list(found)}, config.json asks for {list(wanted)}")
    for problem, key in (("is missing", "missing_keys"), ("has no place in the model", "unexpected_keys")):
        if report[key]:
            raise ConfigError(f"{path}: tensor {min(report[key])!r} {problem}")
    loaded: PreTrainedModel = module
    return loaded
