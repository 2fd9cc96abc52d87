from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import tiny_config

from baton_serving.errors import ConfigError
from baton_serving.model.config import DecoderConfig, decoder_config, read_config_json


def values_of(kind: str, **changes: Any) -> dict[str, Any]:
    architectures = {
        "llama": "LlamaForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "mistral": "MistralForCausalLM",
        "gemma3": "Gemma3ForCausalLM",
    }
    return {**tiny_config(kind).to_dict(), "architectures": [architectures[kind]], **changes}


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
        ({"model_type": "never_heard_of"}, "knows no model_type 'never_heard_of'"),
        ({"model_type": None}, "knows no model_type None"),
        ({"quantization_config": {"quant_method": "awq"}}, "weights quantised with 'awq' are not supported"),
        ({"hidden_act": "relu6"}, "[Aa]ctivation 'relu6' is not supported"),
        ({"num_attention_heads": 3, "head_dim": 16, "hidden_size": 48}, "3 query heads are not a multiple of 2"),
        ({"hidden_size": "wide"}, "transformers refuses it"),
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
