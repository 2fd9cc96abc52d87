"""Angular frequencies against transformers' own, for every scaling we support."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from baton_serving.errors import ConfigError
from baton_serving.model.rope import RopeConfig, frequencies, read_rope

POSITIONS = 2048

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "yarn with amplitude": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 512,
        "attention_factor": 1.25,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn with mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
}


def config_with(rope: dict[str, Any], **fields: Any) -> LlamaConfig:
    return LlamaConfig(
        head_dim=64, max_position_embeddings=POSITIONS, rope_parameters={"rope_theta": 5e5, **rope}, **fields
    )


def read(config: LlamaConfig, positions: int = POSITIONS) -> RopeConfig:
    return read_rope(config.rope_parameters or {}, 64, POSITIONS, positions, "config.json")


@pytest.mark.parametrize("rope", SCALINGS.values(), ids=SCALINGS.keys())
def test_frequencies_match_transformers(rope: dict[str, Any]) -> None:
    config = config_with(rope)
    expected, amplitude = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    ours, our_amplitude = frequencies(read(config))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    assert our_amplitude == pytest.approx(amplitude)


def test_default_frequencies() -> None:
    ours, amplitude = frequencies(read(config_with({"rope_type": "default"})))
    expected = torch.tensor([5e5 ** -(2 * i / 64) for i in range(32)])
    torch.testing.assert_close(ours, expected)
    assert amplitude == 1.0


def test_dynamic_scaling_is_fixed_at_the_longest_context_in_use() -> None:
    config = config_with(SCALINGS["dynamic"])
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=2 * POSITIONS)
    ours, _ = frequencies(read(config, 2 * POSITIONS))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


def test_partial_rotation() -> None:
    rope = read(config_with({"rope_type": "default", "partial_rotary_factor": 0.5}))
    assert rope.rotary_dim == 32
    assert len(frequencies(rope)[0]) == 16


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "rope type 'longrope' is not supported .*--model-impl transformers"),
        ({"rope_type": "linear"}, "rope type 'linear' needs `factor`"),
        ({"rope_type": "default", "rope_theta": "big"}, "a number as `rope_theta`"),
    ],
)
def test_what_we_cannot_compute_is_refused(rope: dict[str, Any], message: str) -> None:
    config = config_with({"rope_type": "default"})
    config.rope_parameters = {"rope_theta": 1e4, **rope}
    with pytest.raises(ConfigError, match=f"config.json: {message}|config.json: .*{message}"):
        read(config)
