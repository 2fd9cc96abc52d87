"""From a client's sampling fields to `SamplingParams`, or to an `InvalidRequest` that names the field. Pure, no torch.

The native route and the OpenAI routes differ in names and defaults only: a `Dialect` says how.
"""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from baton_serving.errors import InvalidRequest
from baton_serving.sampling.params import SamplingParams

MAX_CHOICES: Final = 128
MAX_STOP_STRINGS: Final = 64
MAX_STOP_CHARACTERS: Final = 1024
MAX_STOP_TOKEN_IDS: Final = 256
MAX_BIASES: Final = 1024
MAX_CUSTOM_PARAMS_BYTES: Final = 64 * 1024
MAX_TEMPERATURE: Final = 100.0
GREEDY_BELOW: Final = 1e-6  # a temperature so low can pick nothing but the best token, and would overflow


@dataclass(frozen=True)
class Limits:
    """What a request is checked against. `processors`: names of custom logit processors, empty when switched off."""

    vocab_size: int
    context_length: int
    processors: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Dialect:
    """How a route spells the fields of `SamplingParams`.

    `aliases`: the client's names of a field, the first present wins; a field not listed has its own name only.
    `default_max_new`: length when the client names none, bounded by the context; None is all the context leaves.
    `closed`: the mapping holds sampling fields alone, so an unknown name is an error. `least_new` is 0 where a client
    may ask for nothing but the prompt's log-probabilities.
    """

    prompt_field: str
    default_max_new: int | None
    closed: bool
    least_new: int
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def names(self, name: str) -> tuple[str, ...]:
        return self.aliases.get(name, (name,))


_OPENAI_NAMES: Final = {
    "max_new_tokens": ("max_completion_tokens", "max_tokens"),
    "min_new_tokens": ("min_tokens",),
}
NATIVE: Final = Dialect("input_ids", 128, True, 0, {"seed": ("sampling_seed", "seed")})
CHAT: Final = Dialect("messages", None, False, 1, _OPENAI_NAMES)
COMPLETIONS: Final = Dialect("prompt", 16, False, 0, _OPENAI_NAMES)


def parse_sampling(
    values: Mapping[str, object], dialect: Dialect, limits: Limits, prompt_tokens: int = 0
) -> tuple[SamplingParams, int]:
    """The parameters and the number of choices `n`. Fields that are absent or null get their defaults.

    Without a seed a random one is drawn. `prompt_tokens` is the prompt's length where it is known. Raises
    InvalidRequest for the first bad field.
    """
    fields = _Fields(values, dialect)
    if dialect.closed:
        fields.refuse_unknown()
    max_new = _max_new(fields, limits, prompt_tokens)
    temperature = fields.number("temperature", 1.0, 0.0, MAX_TEMPERATURE)
    params = SamplingParams(
        max_new_tokens=max_new,
        min_new_tokens=_min_new(fields, max_new),
        temperature=0.0 if temperature < GREEDY_BELOW else temperature,
        top_p=fields.number("top_p", 1.0, 0.0, 1.0, above_low=True),
        top_k=_top_k(fields, limits),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        presence_penalty=fields.number("presence_penalty", 0.0, -2.0, 2.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 0.0, 2.0, above_low=True),
        logit_bias=_logit_bias(fields, limits),
        seed=fields.integer("seed", secrets.randbits(63), -(1 << 63), (1 << 63) - 1),
        stop=_stop(fields),
        stop_token_ids=_stop_token_ids(fields, limits),
        ignore_eos=fields.flag("ignore_eos", False),
        skip_special_tokens=fields.flag("skip_special_tokens", True),
        spaces_between_special_tokens=fields.flag("spaces_between_special_tokens", True),
        no_stop_trim=fields.flag("no_stop_trim", False),
        custom_logit_processor=_processor(fields, limits),
        custom_params=_custom_params(fields),
    )
    return params, fields.integer("n", 1, 1, MAX_CHOICES)


class _Fields:
    """Typed reading of a client's mapping; errors carry the client's own name of a field."""

    def __init__(self, values: Mapping[str, object], dialect: Dialect) -> None:
        self._values = values
        self.dialect = dialect

    def refuse_unknown(self) -> None:
        known = {alias for name in [*SamplingParams.__struct_fields__, "n"] for alias in self.dialect.names(name)}
        for name in self._values:
            if name not in known:
                shown = _show(name)
                near = difflib.get_close_matches(shown, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InvalidRequest(f"{shown} is not a sampling parameter{hint}", param=shown.strip("'"))

    def get(self, name: str) -> tuple[str, object]:
        """The client's name of the field and its value, None when absent."""
        names = self.dialect.names(name)
        for alias in names:
            if self._values.get(alias) is not None:
                return alias, self._values[alias]
        return names[0], None

    def number(self, name: str, default: float, low: float, high: float, *, above_low: bool = False) -> float:
        alias, value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequest(f"{alias} must be a number, not {_kind(value)}", param=alias)
        # NaN fails every comparison, and so is out of range.
        if not low <= value <= high or (above_low and value == low):
            bounds = f"above {low:g} and at most {high:g}" if above_low else f"between {low:g} and {high:g}"
            raise InvalidRequest(f"{alias} must be {bounds}, not {_show(value)}", param=alias)
        return float(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        alias, value = self.get(name)
        if value is None:
            return default
        return _integer(alias, value, low, high)

    def flag(self, name: str, default: bool) -> bool:
        alias, value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InvalidRequest(f"{alias} must be true or false, not {_kind(value)}", param=alias)
        return value


def _max_new(fields: _Fields, limits: Limits, prompt_tokens: int) -> int:
    dialect, room = fields.dialect, limits.context_length - prompt_tokens
    alias, value = fields.get("max_new_tokens")
    wanted = None if value is None else _integer(alias, value, dialect.least_new, limits.context_length)
    if room < (1 if wanted is None else min(1, wanted)):
        raise InvalidRequest(
            f"the prompt has {prompt_tokens} tokens, which leaves no room to answer in the model's context of "
            f"{limits.context_length}: shorten it",
            param=dialect.prompt_field,
        )
    if wanted is None:
        return room if dialect.default_max_new is None else min(dialect.default_max_new, room)
    if wanted > room:
        raise InvalidRequest(
            f"the prompt has {prompt_tokens} tokens and {alias} is {wanted}, together over the model's context of "
            f"{limits.context_length}: ask for at most {room}",
            param=alias,
        )
    return wanted


def _min_new(fields: _Fields, max_new: int) -> int:
    alias, _ = fields.get("min_new_tokens")
    minimum = fields.integer("min_new_tokens", 0, 0, (1 << 31) - 1)
    if minimum > max_new:
        raise InvalidRequest(f"{alias} is {minimum}, more than the {max_new} tokens allowed", param=alias)
    return minimum


def _top_k(fields: _Fields, limits: Limits) -> int:
    alias, _ = fields.get("top_k")
    top_k = fields.integer("top_k", -1, -1, (1 << 31) - 1)
    if top_k == 0:
        raise InvalidRequest(f"{alias} must be at least 1, or -1 for all tokens", param=alias)
    return -1 if top_k >= limits.vocab_size else top_k


def _logit_bias(fields: _Fields, limits: Limits) -> dict[int, float]:
    alias, value = fields.get("logit_bias")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{alias} must map token ids to numbers, not be {_kind(value)}", param=alias)
    if len(value) > MAX_BIASES:
        raise InvalidRequest(f"{alias} has {len(value)} entries, at most {MAX_BIASES} are taken", param=alias)
    biases: dict[int, float] = {}
    for key, bias in value.items():
        token = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 12 else key
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < limits.vocab_size:
            raise InvalidRequest(
                f"{alias}: there is no token {_show(key)}, ids run from 0 to {limits.vocab_size - 1}", param=alias
            )
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise InvalidRequest(f"{alias} of token {token} must be between -100 and 100", param=alias)
        biases[token] = float(bias)
    return biases


def _stop(fields: _Fields) -> tuple[str, ...]:
    alias, value = fields.get("stop")
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list | tuple):
        raise InvalidRequest(f"{alias} must be a string or a list of strings, not {_kind(value)}", param=alias)
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"{alias} has {len(strings)} strings, at most {MAX_STOP_STRINGS} are taken", param=alias)
    return tuple(_stop_string(alias, string) for string in strings)


def _stop_string(alias: str, string: object) -> str:
    if not isinstance(string, str):
        raise InvalidRequest(f"{alias} must hold strings, not {_kind(string)}", param=alias)
    if not 0 < len(string) <= MAX_STOP_CHARACTERS:
        raise InvalidRequest(f"each string of {alias} must have 1 to {MAX_STOP_CHARACTERS} characters", param=alias)
    if not _is_text(string):
        raise InvalidRequest(f"{alias} holds a lone surrogate, which no text can contain", param=alias)
    return string


def _stop_token_ids(fields: _Fields, limits: Limits) -> tuple[int, ...]:
    alias, value = fields.get("stop_token_ids")
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InvalidRequest(f"{alias} must be a list of token ids, not {_kind(value)}", param=alias)
    if len(value) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequest(f"{alias} has {len(value)} ids, at most {MAX_STOP_TOKEN_IDS} are taken", param=alias)
    return tuple(_integer(alias, token, 0, limits.vocab_size - 1) for token in value)


def _processor(fields: _Fields, limits: Limits) -> str | None:
    alias, value = fields.get("custom_logit_processor")
    if value is None:
        return None
    if not limits.processors:
        raise InvalidRequest(
            f"{alias}: custom logit processors are off, the server needs --enable-custom-logit-processor", param=alias
        )
    if not isinstance(value, str) or value not in limits.processors:
        known = ", ".join(sorted(limits.processors))
        raise InvalidRequest(
            f"{alias} must name a processor of this server ({known}); code sent by clients is not run", param=alias
        )
    return value


def _custom_params(fields: _Fields) -> dict[str, object] | None:
    alias, value = fields.get("custom_params")
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidRequest(f"{alias} must be an object, not {_kind(value)}", param=alias)
    try:
        size = len(msgspec.msgpack.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"{alias} must hold plain JSON values: {error}", param=alias) from error
    if size > MAX_CUSTOM_PARAMS_BYTES:
        raise InvalidRequest(f"{alias} takes {size} bytes, over {MAX_CUSTOM_PARAMS_BYTES}", param=alias)
    return value


def _integer(alias: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{alias} must be an integer, not {_kind(value)}", param=alias)
    if not low <= value <= high:
        raise InvalidRequest(f"{alias} must be between {low} and {high}, not {_show(value)}", param=alias)
    return value


def _is_text(string: str) -> bool:
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True


def _show(value: object) -> str:
    """The value as an error shows it: short, whatever the client sent."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a number of that size"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


_KINDS: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)
