from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from baton_serving.sampling.params import SamplingParams, SlotSetup
from baton_serving.sampling.sampler import Sampler, nan_rows
from baton_serving.sampling.state import Features, SamplingPlan, SamplingState

CPU = torch.device("cpu")
Floats = NDArray[np.float64]


def setup_of(slot: int, params: SamplingParams, prompt: Sequence[int] = (), output: Sequence[int] = ()) -> SlotSetup:
    return SlotSetup(slot, params, list(prompt), list(output), [0])


def sampler_with(setups: Sequence[SlotSetup], vocab: int = 50, slots: int = 8) -> tuple[SamplingState, Sampler]:
    state = SamplingState(slots, vocab, CPU)
    state.set_up(setups)
    return state, Sampler(state)


def sample(state: SamplingState, sampler: Sampler, logits: Tensor, slots: Sequence[int]) -> list[int]:
    tokens: list[int] = sampler.sample(logits, torch.tensor(slots), state.plan(slots)).tokens.tolist()
    return tokens


def reference(logits: Floats, setup: SlotSetup) -> Floats:
    """Probabilities of the next token, step by step in float64 as the module's docstring orders them."""
    params = setup.params
    logits = logits.copy()
    generated = np.bincount(np.array(setup.output, dtype=np.int64), minlength=len(logits))
    for token in {*setup.prompt, *setup.output}:
        logits[token] *= params.repetition_penalty if logits[token] < 0 else 1 / params.repetition_penalty
    logits -= params.frequency_penalty * generated + params.presence_penalty * (generated > 0)
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if len(setup.output) < params.min_new_tokens:
        logits[[*setup.eos_token_ids, *params.stop_token_ids]] = -np.inf
    if params.greedy:
        return np.where(np.arange(len(logits)) == np.argmax(logits), 1.0, 0.0)
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits[order] - logits.max()) / params.temperature)
    if params.top_k != -1:
        weights[params.top_k :] = 0
    before = np.cumsum(weights) - weights
    weights[before >= params.top_p * weights.sum()] = 0
    weights[weights < params.min_p] = 0
    result = np.zeros_like(logits)
    result[order] = weights / weights.sum()
    return result


VARIANTS = [
    SamplingParams(),
    SamplingParams(temperature=0.0, repetition_penalty=1.8),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=5.0),
    SamplingParams(top_k=1),
    SamplingParams(top_k=7),
    SamplingParams(top_p=0.6),
    SamplingParams(min_p=0.2),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.7, min_p=0.05),
    SamplingParams(frequency_penalty=0.7, presence_penalty=-0.5),
    SamplingParams(repetition_penalty=1.5, frequency_penalty=1.2, top_p=0.8),
    SamplingParams(repetition_penalty=0.6),
    SamplingParams(logit_bias={3: 4.5, 11: -100.0}),
    SamplingParams(min_new_tokens=5, stop_token_ids=(1, 2)),
]
PROMPT, OUTPUT = [4, 9, 9, 3, 3], [9, 9, 2, 40]


@pytest.mark.parametrize("params", VARIANTS, ids=range(len(VARIANTS)))
def test_frequencies_match_the_float64_reference(params: SamplingParams) -> None:
    """4,000 draws, one per seed, against the reference's probabilities: chi-square at 5 sigma, deterministic seeds."""
    draws, vocab = 4000, 50
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(5)) * 2
    setups = [setup_of(seed, msgspec.structs.replace(params, seed=seed), PROMPT, OUTPUT) for seed in range(draws)]
    state, sampler = sampler_with(setups, vocab, draws)
    tokens = sample(state, sampler, logits.expand(draws, vocab), range(draws))
    expected = reference(logits.double().numpy(), setups[0]) * draws
    counts = np.bincount(tokens, minlength=vocab)
    assert counts[expected == 0].sum() == 0
    sure = expected >= 8
    chi_square = float(((counts[sure] - expected[sure]) ** 2 / expected[sure]).sum())
    freedom = max(int(sure.sum()) - 1, 1)
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5
    assert counts[~sure].sum() <= expected[~sure].sum() + 5 * (expected[~sure].sum() + 1) ** 0.5


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.2, 1.0, 3.0]),
    top_k=st.sampled_from([-1, 1, 5, 30, 1000]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.9]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -1.0, 1.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.5, 1.9]),
    logit_bias=st.sampled_from([{}, {}, {0: -100.0, 7: 3.0}]),
    min_new_tokens=st.sampled_from([0, 0, 3]),
    seed=st.integers(-(1 << 63), (1 << 63) - 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PARAMS, min_size=1, max_size=6), st.integers(0, 1 << 30), st.randoms(use_true_random=False))
def test_a_row_does_not_depend_on_its_company(params: list[SamplingParams], seed: int, shuffler: object) -> None:
    """The same rows alone, together, and in another order and other slots draw the same tokens for three steps."""
    generator = torch.Generator().manual_seed(seed)
    steps = [torch.randn((len(params), 700), generator=generator) * 4 for _ in range(3)]
    setups = [setup_of(slot, each, PROMPT, OUTPUT[: slot % 3]) for slot, each in enumerate(params)]
    state, sampler = sampler_with(setups, 700)
    together = [sample(state, sampler, logits, range(len(params))) for logits in steps]
    for row, setup in enumerate(setups):
        alone, alone_sampler = sampler_with([setup], 700)
        assert [sample(alone, alone_sampler, logits[row : row + 1], [row])[0] for logits in steps] == [
            tokens[row] for tokens in together
        ]
    order = np.random.default_rng(seed).permutation(len(params)).tolist()
    moved = [setup_of(7 - row, setups[row].params, PROMPT, setups[row].output) for row in order]
    other, other_sampler = sampler_with(moved, 700)
    for logits, tokens in zip(steps, together, strict=True):
        again = sample(other, other_sampler, logits[order], [setup.slot for setup in moved])
        assert again == [tokens[row] for row in order]


@settings(max_examples=40, deadline=None)
@given(PARAMS, st.integers(0, 1 << 30), st.integers(1, 5))
def test_a_resumed_request_goes_on_as_if_undisturbed(params: SamplingParams, seed: int, cut: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    steps = [torch.randn((1, 60), generator=generator) * 2 for _ in range(6)]
    state, sampler = sampler_with([setup_of(0, params, PROMPT)], 60)
    whole = [sample(state, sampler, logits, [0])[0] for logits in steps]
    resumed, resumed_sampler = sampler_with([setup_of(5, params, PROMPT, whole[:cut])], 60)
    assert resumed.last_tokens[5].item() == whole[cut - 1]
    assert [sample(resumed, resumed_sampler, logits, [5])[0] for logits in steps[cut:]] == whole[cut:]


def test_more_features_than_needed_change_nothing() -> None:
    """A graph captured for filters and randomness may serve plain rows."""
    rows = [SamplingParams(seed=3), SamplingParams(temperature=0.0), SamplingParams(seed=9, top_p=0.7)]
    logits = torch.randn((3, 500), generator=torch.Generator().manual_seed(0)) * 3
    slots = torch.arange(3)
    results = []
    everything = Features(sum(Features) - Features.PROCESSOR)
    for features in (Features.RANDOM | Features.TOP_P, everything):
        _, sampler = sampler_with([setup_of(slot, params) for slot, params in enumerate(rows)], 500)
        results.append(sampler.sample(logits, slots, SamplingPlan(features)).tokens.tolist())
    assert results[0] == results[1]


def test_sampling_updates_position_last_token_and_counts() -> None:
    params = SamplingParams(temperature=0.0, frequency_penalty=2.0)
    state, sampler = sampler_with([setup_of(2, params), setup_of(4, SamplingParams(temperature=0.0))])
    logits = torch.zeros((2, 50))
    logits[:, 8], logits[:, 6] = 3.0, 2.0
    drawn = [sample(state, sampler, logits, [2, 4]) for _ in range(3)]
    assert drawn == [[8, 8], [6, 8], [8, 8]]
    assert state.positions[[2, 4, 3]].tolist() == [3, 3, 0]
    assert state.last_tokens[[2, 4]].tolist() == [8, 8]
    assert logits[0, 8] == 3.0


def test_end_tokens_are_held_back_until_the_minimum() -> None:
    greedy = SamplingParams(temperature=0.0, min_new_tokens=2)
    wider = SamplingParams(temperature=0.0, min_new_tokens=3, stop_token_ids=(5, 6, 7))
    narrower = SamplingParams(temperature=0.0, min_new_tokens=4, stop_token_ids=(5,))
    state, sampler = sampler_with([setup_of(0, greedy), setup_of(1, wider), setup_of(2, narrower)])
    logits = torch.zeros(3, 50)
    logits[:, 0], logits[:, 1], logits[:, 5], logits[:, 3] = 9.0, 8.0, 8.5, 7.0
    drawn = [sample(state, sampler, logits, [0, 1, 2]) for _ in range(5)]
    assert drawn == [[5, 1, 1], [5, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_repetition_divides_what_is_positive_and_multiplies_the_rest() -> None:
    """As transformers' RepetitionPenaltyLogitsProcessor: 0.9 falls to 0.6, -0.2 to -0.3, prompt and output alike."""
    params = SamplingParams(temperature=0.0, repetition_penalty=1.5)
    for best, runner_up, expected in [(0.9, 0.61, 1), (0.9, 0.59, 0), (-0.2, -0.29, 1), (-0.2, -0.31, 0)]:
        for prompt, output in [([0], []), ([], [0]), ([0], [0, 0])]:
            state, sampler = sampler_with([setup_of(0, params, prompt, output)])
            logits = torch.tensor([[best, runner_up] + [-5.0] * 48])
            assert sample(state, sampler, logits, [0]) == [expected]


def test_padded_rows_disturb_nobody() -> None:
    state, sampler = sampler_with([setup_of(1, SamplingParams(seed=4, top_p=0.9))])
    logits = torch.randn((4, 50), generator=torch.Generator().manual_seed(1))
    slots = [1, state.padding_slot, state.padding_slot, state.padding_slot]
    padded = sample(state, sampler, logits, slots)[0]
    alone, alone_sampler = sampler_with([setup_of(1, SamplingParams(seed=4, top_p=0.9))])
    assert padded == sample(alone, alone_sampler, logits[:1], [1])[0]


def test_equal_logits_give_the_first_when_greedy() -> None:
    state, sampler = sampler_with([setup_of(0, SamplingParams(temperature=0.0))])
    assert sample(state, sampler, torch.tensor([[1.0, 2.0, 2.0] + [0.0] * 47]), [0]) == [1]


def test_broken_logits_give_a_token_in_range_and_are_found() -> None:
    params = [SamplingParams(seed=1), SamplingParams(seed=1, top_p=0.5, top_k=4), SamplingParams(temperature=0.0)]
    state, sampler = sampler_with([setup_of(slot, each) for slot, each in enumerate(params)])
    for broken in (float("nan"), float("inf"), -float("inf")):
        logits = torch.full((3, 50), broken)
        assert all(0 <= token < 50 for token in sample(state, sampler, logits, [0, 1, 2]))
    logits = torch.zeros((3, 50))
    logits[1, 49] = float("nan")
    assert nan_rows(logits).tolist() == [False, True, False]


def test_low_precision_logits_are_taken() -> None:
    state, sampler = sampler_with([setup_of(0, SamplingParams(seed=2, repetition_penalty=1.2), PROMPT)])
    logits = torch.randn((1, 50), dtype=torch.bfloat16)
    assert 0 <= sample(state, sampler, logits, [0])[0] < 50


def only_token(logits: Tensor, params: Sequence[Mapping[str, object]]) -> Tensor:
    result = torch.full_like(logits, -torch.inf)
    for row, wanted in enumerate(params):
        result[row, int(str(wanted["token"]))] = 0.0
    return result


def test_processors_see_their_rows_and_fail_alone() -> None:
    forced = [
        SamplingParams(custom_logit_processor="only", custom_params={"token": token}, seed=token) for token in (7, 30)
    ]
    bad = SamplingParams(custom_logit_processor="broken", seed=5)
    state = SamplingState(8, 50, CPU)
    rows = [forced[0], SamplingParams(temperature=0.0), bad, forced[1]]
    state.set_up([setup_of(slot, params) for slot, params in enumerate(rows)])
    sampler = Sampler(state, {"only": only_token, "broken": lambda logits, params: logits[:, :3]})
    logits = torch.zeros((4, 50))
    logits[1, 12] = 1.0
    result = sampler.sample(logits, torch.arange(4), state.plan(range(4)))
    assert result.tokens[[0, 1, 3]].tolist() == [7, 12, 30]
    assert result.failed_rows == (2,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_what_the_cpu_draws() -> None:
    rows, vocab = 64, 151_936
    variants = [msgspec.structs.replace(VARIANTS[row % len(VARIANTS)], seed=row) for row in range(rows)]
    setups = [setup_of(row, params, PROMPT, OUTPUT) for row, params in enumerate(variants)]
    logits = torch.randn((rows, vocab), generator=torch.Generator().manual_seed(0)) * 3
    drawn = []
    for device in (CPU, torch.device("cuda")):
        state = SamplingState(rows, vocab, device)
        state.set_up(setups)
        slots, plan = torch.arange(rows, device=device), state.plan(range(rows))
        drawn.append([Sampler(state).sample(logits.to(device), slots, plan).tokens.tolist() for _ in range(3)])
    assert drawn[0] == drawn[1]
