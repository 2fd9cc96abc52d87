"""config.json of the architectures that our decoder runs: fields and defaults of Hugging Face's config classes.

Names and defaults are those of transformers 5. They are written down here because building a config through
transformers imports half of it: more than three seconds of CPU at each start of a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec

from baton_serving.errors import ConfigError

FULL, SLIDING = "full_attention", "sliding_attention"

Size = Annotated[int, msgspec.Meta(ge=1)]
Rope = dict[str, Any]


class TextConfig(msgspec.Struct, kw_only=True):
    """What the language model of every supported architecture has. `None` in a field: derived from the others."""

    model_types: ClassVar[tuple[str, ...]]
    default_theta: ClassVar[float] = 10_000.0

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Size
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    eos_token_id: int | list[int] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    attention_bias: bool = False
    sliding_window: Size | None = None
    layer_types: list[str] | None = None
    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None

    def __post_init__(self) -> None:
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"`layer_types` has {len(self.layer_types)} entries for {self.num_hidden_layers} layers")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            heads = f"`num_attention_heads` {self.num_attention_heads}"
            raise ValueError(f"`hidden_size` {self.hidden_size} is not a multiple of {heads}, and there is no head_dim")

    def kinds(self) -> list[str]:
        """The kind of attention of each layer."""
        return self.layer_types or [FULL] * self.num_hidden_layers

    def rope(self, kind: str) -> Rope:
        """The `rope_parameters` of layers of one kind, `rope_theta` included; older names are understood."""
        given = self.rope_scaling or self.rope_parameters or {}
        given = given[kind] if isinstance(given.get(kind), dict) else given
        defaults: Rope = {"rope_theta": self.default_theta if self.rope_theta is None else self.rope_theta}
        if self.partial_rotary_factor is not None:
            defaults["partial_rotary_factor"] = self.partial_rotary_factor
        return _with_type({**defaults, **given})


class Llama(TextConfig, kw_only=True):
    """Llama 1 to 3."""

    model_types: ClassVar[tuple[str, ...]] = ("llama",)

    vocab_size: Size = 32_000
    hidden_size: Size = 4096
    intermediate_size: Size = 11_008
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    max_position_embeddings: Size = 2048
    eos_token_id: int | list[int] | None = 2
    mlp_bias: bool = False


class Qwen2(TextConfig, kw_only=True):
    """Qwen 2 and 2.5: layers from `max_window_layers` on slide if they are told to."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2",)

    vocab_size: Size = 151_936
    hidden_size: Size = 4096
    intermediate_size: Size = 22_016
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 32
    max_position_embeddings: Size = 32_768
    sliding_window: Size | None = 4096
    use_sliding_window: bool = False
    max_window_layers: int = 28

    def __post_init__(self) -> None:
        if not self.use_sliding_window:
            self.sliding_window = None
        super().__post_init__()

    def kinds(self) -> list[str]:
        if self.layer_types is not None or self.sliding_window is None:
            return super().kinds()
        return [SLIDING if layer >= self.max_window_layers else FULL for layer in range(self.num_hidden_layers)]


class Qwen3(Qwen2, kw_only=True):
    """Qwen 3, dense."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3",)

    head_dim: Size | None = 128


class Mistral(TextConfig, kw_only=True):
    """Mistral 7B and its kin: every layer slides, unless there is no window."""

    model_types: ClassVar[tuple[str, ...]] = ("mistral",)

    vocab_size: Size = 32_000
    hidden_size: Size = 4096
    intermediate_size: Size = 14_336
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131_072
    eos_token_id: int | list[int] | None = 2
    sliding_window: Size | None = 4096


class Gemma3Text(TextConfig, kw_only=True):
    """The language model of Gemma 3: one layer of `sliding_window_pattern` sees everything, with a rope of its own."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3_text", "gemma3")
    default_theta: ClassVar[float] = 1_000_000.0

    vocab_size: Size = 262_208
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: Size = 26
    num_attention_heads: Size = 8
    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: Size = 131_072
    tie_word_embeddings: bool = True
    eos_token_id: int | list[int] | None = 1
    query_pre_attn_scalar: Size = 256
    sliding_window: Size | None = 4096
    sliding_window_pattern: Size = 6
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | None = False
    rope_local_base_freq: float = 10_000.0

    def kinds(self) -> list[str]:
        if self.layer_types is not None:
            return self.layer_types
        pattern = self.sliding_window_pattern
        return [SLIDING if (layer + 1) % pattern else FULL for layer in range(self.num_hidden_layers)]

    def rope(self, kind: str) -> Rope:
        given = (self.rope_parameters or {}).get(kind) or {}
        if kind == SLIDING:
            return _with_type({"rope_theta": self.rope_local_base_freq, **given})
        theta = self.default_theta if self.rope_theta is None else self.rope_theta
        return _with_type({"rope_theta": theta, **given, **(self.rope_scaling or {})})


class Gemma3(msgspec.Struct, kw_only=True):
    """Gemma 3 with vision: the language model is one part."""

    text_config: Gemma3Text = msgspec.field(default_factory=Gemma3Text)
    tie_word_embeddings: bool | None = True
    dtype: str | None = None
    torch_dtype: str | None = None


def read_text_config(values: Mapping[str, Any], expected: type[TextConfig], origin: str) -> TextConfig:
    """The language model that config.json's `values` describe; ConfigError names what `origin` has wrong."""
    model_type = values.get("model_type")
    if model_type not in expected.model_types:
        known = " or ".join(map(repr, expected.model_types))
        raise ConfigError(f"{origin}: model_type {model_type!r} does not go with its architecture; it must be {known}")
    try:
        if model_type != "gemma3":
            return msgspec.convert(values, expected)
        whole = msgspec.convert(values, Gemma3)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {error}") from error
    text = whole.text_config
    text.tie_word_embeddings = bool(whole.tie_word_embeddings)
    text.dtype = text.dtype or text.torch_dtype or whole.dtype or whole.torch_dtype
    return text


def _with_type(rope: Rope) -> Rope:
    return {**rope, "rope_type": rope.get("rope_type") or rope.get("type") or "default"}
