from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import tiny_config

from baton_serving.errors import ConfigError
from baton_serving.model.config import DecoderConfig, decoder_config, read_config_json
from baton_serving.model.transformers_config import parse_config

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}


def values_of(kind: str, **changes: Any) -> dict[str, Any]:
    return {**tiny_config(kind).to_dict(), "architectures": [ARCHITECTURES[kind]], **changes}


def describe(kind: str, **changes: Any) -> DecoderConfig:
    return decoder_config(values_of(kind, **changes), "config.json")


def test_llama() -> None:
    config = describe("llama")
    assert (config.q_heads, config.kv_heads, config.head_dim, config.layers) == (4, 2, 16, 3)
    assert config.windows == (None, None, None)
    assert config.attention_scale == 16**-0.5
    assert {rope.kind for rope in config.ropes} == {"llama3"}
    flags = (config.qk_norm, config.qkv_bias, config.sandwich_norms, config.tie_embeddings)
    assert not any(flags)
    assert (config.eos_token_ids, config.max_positions) == ((2,), 1024)


def test_llama_with_biases() -> None:
    config = describe("llama", attention_bias=True, mlp_bias=True)
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (True, True, True)


def test_qwen2_has_biases_before_attention_only() -> None:
    config = describe("qwen2")
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (True, False, False)
    assert config.tie_embeddings


def test_qwen2_slides_in_its_upper_layers_if_told_to() -> None:
    changes = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1, "layer_types": None}
    assert describe("qwen2", **changes).windows == (None, 32, 32)


def test_qwen3_norms_queries_and_keys() -> None:
    config = describe("qwen3")
    assert config.qk_norm
    assert config.head_dim == 32
    assert config.norm_offset == 0.0


def test_mistral_slides_in_every_layer() -> None:
    assert describe("mistral").windows == (40, 40, 40)
    assert describe("mistral", sliding_window=None).windows == (None, None, None)


def test_gemma3() -> None:
    config = describe("gemma3")
    assert config.windows == ((24,) * 5 + (None,)) * 2
    assert [rope.theta for rope in config.ropes[4:6]] == [1e4, 1e6]
    assert (config.norm_offset, config.sandwich_norms, config.qk_norm) == (1.0, True, True)
    assert (config.embed_scale, config.attention_scale) == (8.0, 20**-0.5)
    assert (config.activation, config.logits_softcap, config.attention_softcap) == ("gelu_tanh", 30.0, None)
    assert config.tie_embeddings


def test_gemma3_inside_a_multimodal_config() -> None:
    text = values_of("gemma3")
    values = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    config = decoder_config(values, "config.json")
    assert config.windows == describe("gemma3").windows
    assert config.architecture == "Gemma3ForConditionalGeneration"


SCALED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
SPARSE: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, older names": {
        "model_type": "llama",
        "num_hidden_layers": 4,
        "num_key_value_heads": 8,
        "rope_theta": 500000.0,
        "rope_scaling": {"type": "linear", "factor": 8.0},
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 2],
    },
    "llama 3": {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "dtype": "float16",
    },
    "qwen2": {"model_type": "qwen2"},
    "qwen2, sliding": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 100},
    "qwen3": {"model_type": "qwen3", "rope_theta": 1000000, "rope_scaling": SCALED},
    "qwen3, told where it slides": {
        "model_type": "qwen3",
        "num_hidden_layers": 2,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": SCALED, "sliding_attention": {"rope_type": "default"}},
    },
    "mistral": {"model_type": "mistral"},
    "mistral, no window": {"model_type": "mistral", "sliding_window": None, "head_dim": 160},
    "gemma3": {"model_type": "gemma3_text"},
    "gemma3, older names": {
        "model_type": "gemma3_text",
        "rope_theta": 900000.0,
        "rope_local_base_freq": 9000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
    },
    "gemma3 with vision": {"model_type": "gemma3", "text_config": {"num_hidden_layers": 7}},
}


@pytest.mark.parametrize("values", SPARSE.values(), ids=SPARSE.keys())
def test_what_a_file_leaves_out_is_filled_in_as_transformers_does(values: dict[str, Any]) -> None:
    kind = values["model_type"].removesuffix("_text")
    architecture = "Gemma3ForConditionalGeneration" if values["model_type"] == "gemma3" else ARCHITECTURES[kind]
    written_out = parse_config(copy.deepcopy(values), "config.json").to_dict()
    named = {"architectures": [architecture]}
    assert decoder_config({**values, **named}, "c") == decoder_config({**written_out, **named}, "c")


def test_context_length_can_be_overridden() -> None:
    config = decoder_config(values_of("llama"), "config.json", max_positions=256)
    assert config.max_positions == 256
    assert config.ropes[0].max_positions == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["OlmoForCausalLM"], "model_type": "olmo"},
            "architecture OlmoForCausalLM is not supported .*--model-impl transformers",
        ),
        ({"architectures": []}, "`architectures` is missing"),
        ({"model_type": "qwen2"}, "model_type 'qwen2' does not go with its architecture; it must be 'llama'"),
        ({"model_type": None}, "model_type None does not go with"),
        ({"quantization_config": {"quant_method": "awq"}}, "weights quantised with 'awq' are not supported like this"),
        ({"hidden_act": "relu6"}, "[Aa]ctivation 'relu6' is not supported"),
        ({"num_attention_heads": 3, "head_dim": 16, "hidden_size": 48}, "3 query heads are not a multiple of 2"),
        ({"hidden_size": "wide"}, r"config.json: Expected `int`, got `str` - at `\$.hidden_size`"),
        ({"num_hidden_layers": 0}, r"Expected `int` >= 1 - at `\$.num_hidden_layers`"),
        ({"hidden_size": 65, "head_dim": None}, "`hidden_size` 65 is not a multiple of `num_attention_heads` 4"),
        ({"layer_types": ["full_attention"]}, "`layer_types` has 1 entries for 3 layers"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer type 'chunked_attention' is not supported"),
    ],
)
def test_what_the_decoder_cannot_run_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        describe("llama", **changes)
    assert "\n" not in error.value.message


def test_bidirectional_gemma_is_refused() -> None:
    with pytest.raises(ConfigError, match="use_bidirectional_attention"):
        describe("gemma3", use_bidirectional_attention=True)


def test_overrides_are_laid_over_the_file_and_merge_objects(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"a": 1, "b": {"x": 1, "y": 2}, "c": {"z": 1}}))
    merged = read_config_json(tmp_path, {"a": 2, "b": {"y": 3}, "c": None, "d": {"w": 0}})
    assert merged == {"a": 2, "b": {"x": 1, "y": 3}, "c": None, "d": {"w": 0}}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no config.json here"), (b"{", "cannot be read as JSON"), (b"\xff", "cannot be"), (b"[]", "JSON object")],
)
def test_a_bad_config_file_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_config_json(tmp_path)
    assert str(tmp_path) in error.value.message
