import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_serving.errors import InvalidRequest
from baton_serving.sampling.params import SamplingParams
from baton_serving.sampling.validate import CHAT, COMPLETIONS, NATIVE, Dialect, Limits, parse_sampling

LIMITS = Limits(vocab_size=1000, context_length=200, processors=frozenset({"disallowed_tokens"}))

BAD: list[tuple[str, object]] = [
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", -0.1),
    ("temperature", 10**400),
    ("temperature", "hot"),
    ("temperature", True),
    ("max_new_tokens", -1),
    ("max_new_tokens", 201),
    ("max_new_tokens", 10**5000),
    ("max_new_tokens", 5.0),
    ("max_new_tokens", "5"),
    ("min_new_tokens", -1),
    ("min_new_tokens", 129),
    ("n", 0),
    ("n", -3),
    ("n", 129),
    ("n", True),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("top_k", 0),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("frequency_penalty", 2.1),
    ("presence_penalty", -2.1),
    ("repetition_penalty", 0),
    ("repetition_penalty", 2.5),
    ("seed", 1 << 63),
    ("seed", 1.0),
    ("stop", ["x"] * 10_000),
    ("stop", ["x", 5]),
    ("stop", [""]),
    ("stop", ""),
    ("stop", "x" * 2000),
    ("stop", "\ud800"),
    ("stop", {"a": 1}),
    ("stop_token_ids", [1000]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", 5),
    ("stop_token_ids", [1] * 300),
    ("logit_bias", {"1000": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"abc": 1}),
    ("logit_bias", {"²": 1}),
    ("logit_bias", {"9" * 5000: 1}),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {"5": math.nan}),
    ("logit_bias", {"5": "much"}),
    ("logit_bias", [1, 2]),
    ("logit_bias", {str(i): 1 for i in range(2000)}),
    ("ignore_eos", "yes"),
    ("skip_special_tokens", 1),
    ("custom_logit_processor", '{"callable": "80049..."}'),
    ("custom_logit_processor", 5),
    ("custom_params", [1]),
    ("custom_params", {"x": "\ud800"}),
    ("custom_params", {"x": "y" * 100_000}),
    ("no_such_thing", 1),
    ("\ud800", 1),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name!r}-{i}" for i, (name, _) in enumerate(BAD)])
def test_a_bad_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_sampling({name: value}, NATIVE, LIMITS)
    param, message = caught.value.param, caught.value.message
    assert param == name.encode("ascii", "backslashreplace").decode()
    assert param in message
    assert len(message) < 300


def test_absent_and_null_fields_get_their_defaults() -> None:
    params, n = parse_sampling(dict.fromkeys(SamplingParams.__struct_fields__), NATIVE, LIMITS)
    assert (params, n) == (SamplingParams(seed=params.seed), 1)
    assert parse_sampling({}, NATIVE, LIMITS)[0].seed != params.seed


def test_every_field_is_taken_over() -> None:
    wanted: dict[str, object] = {
        "max_new_tokens": 50,
        "min_new_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.01,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {3: 1.0},
        "seed": -5,
        "stop": ("a", "b"),
        "stop_token_ids": (7, 8),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "no_stop_trim": True,
        "custom_logit_processor": "disallowed_tokens",
        "custom_params": {"token_ids": [1, 2]},
    }
    assert set(wanted) == set(SamplingParams.__struct_fields__)
    params, n = parse_sampling({**wanted, "n": 3}, NATIVE, LIMITS)
    assert n == 3
    assert {name: getattr(params, name) for name in wanted} == wanted


def test_openai_names_and_spellings() -> None:
    body = {"max_tokens": 9, "stop": "END", "logit_bias": {"17": -100}, "seed": 4, "messages": [], "model": "m"}
    params, _ = parse_sampling(body, CHAT, LIMITS)
    assert params == SamplingParams(max_new_tokens=9, stop=("END",), logit_bias={17: -100.0}, seed=4)
    both = {"max_tokens": 9, "max_completion_tokens": 11}
    assert parse_sampling(both, CHAT, LIMITS)[0].max_new_tokens == 11
    with pytest.raises(InvalidRequest) as caught:
        parse_sampling({"max_tokens": -1}, CHAT, LIMITS)
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("dialect", "prompt_tokens", "expected"),
    [(NATIVE, 10, 128), (NATIVE, 150, 50), (CHAT, 150, 50), (CHAT, 1, 199), (COMPLETIONS, 150, 16), (NATIVE, 199, 1)],
)
def test_the_default_length_fits_the_context(dialect: Dialect, prompt_tokens: int, expected: int) -> None:
    assert parse_sampling({}, dialect, LIMITS, prompt_tokens)[0].max_new_tokens == expected


def test_prompt_and_answer_must_fit_the_context() -> None:
    with pytest.raises(InvalidRequest, match="at most 50") as caught:
        parse_sampling({"max_tokens": 51}, CHAT, LIMITS, prompt_tokens=150)
    assert caught.value.param == "max_tokens"
    with pytest.raises(InvalidRequest, match="shorten it") as caught:
        parse_sampling({}, CHAT, LIMITS, prompt_tokens=200)
    assert caught.value.param == "messages"


def test_only_routes_that_score_prompts_may_ask_for_no_answer() -> None:
    full = {"prompt_tokens": 200}
    assert parse_sampling({"max_new_tokens": 0}, NATIVE, LIMITS, **full)[0].max_new_tokens == 0
    assert parse_sampling({"max_tokens": 0}, COMPLETIONS, LIMITS, **full)[0].max_new_tokens == 0
    with pytest.raises(InvalidRequest, match="between 1"):
        parse_sampling({"max_tokens": 0}, CHAT, LIMITS)
    with pytest.raises(InvalidRequest, match="shorten it"):
        parse_sampling({"max_tokens": 0}, COMPLETIONS, LIMITS, prompt_tokens=201)


def test_processors_are_off_unless_the_server_names_some() -> None:
    with pytest.raises(InvalidRequest, match="--enable-custom-logit-processor"):
        parse_sampling({"custom_logit_processor": "disallowed_tokens"}, NATIVE, Limits(10, 10))


def test_a_misspelt_field_gets_a_suggestion() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'temperature'"):
        parse_sampling({"temprature": 1}, NATIVE, LIMITS)


def test_edges_are_normalised() -> None:
    params, _ = parse_sampling({"temperature": 1e-9, "top_k": 1000}, NATIVE, LIMITS)
    assert (params.temperature, params.top_k) == (0.0, -1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "5", "-1", "\ud800", "nan"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["3", "x", "\ud800"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from([*SamplingParams.__struct_fields__, "n"])


@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_whatever_is_sent_is_parsed_or_refused(values: dict[str, object]) -> None:
    refused: InvalidRequest | None = None
    try:
        params, n = parse_sampling(values, NATIVE, LIMITS)
    except InvalidRequest as error:
        refused = error
    if refused is not None:
        assert refused.param in values
        refused.message.encode()
        return
    assert 0 <= params.max_new_tokens <= 200
    assert params.min_new_tokens <= params.max_new_tokens
    assert 1 <= n <= 128
    assert math.isfinite(params.temperature)
