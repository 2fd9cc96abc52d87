from hypothesis import given
from hypothesis import strategies as st

from baton_serving.sampling.seeds import GOLDEN, as_signed, choice_seed, mix64, stream_key

# The first outputs of SplitMix64 started at 1234567, as published with its reference implementation.
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_mixing_gives_the_published_stream() -> None:
    assert [mix64(1234567 + n * GOLDEN) for n in range(1, 6)] == PUBLISHED


@given(st.integers(-(1 << 63), (1 << 64) - 1))
def test_signed_integers_keep_their_bits(value: int) -> None:
    signed = as_signed(value)
    assert -(1 << 63) <= signed < 1 << 63
    assert (signed - value) % (1 << 64) == 0


def test_neighbouring_seeds_start_far_apart() -> None:
    keys = [stream_key(seed) for seed in range(-500, 500)]
    assert len(set(keys)) == len(keys)
    # No key lies on another's stream within any length a request can have.
    steps = {(a - keys[0]) * pow(GOLDEN, -1, 1 << 64) % (1 << 64) for a in keys[1:]}
    assert min(min(step, (1 << 64) - step) for step in steps) > 1 << 24


def test_choices_of_a_request_have_seeds_of_their_own() -> None:
    seeds = {choice_seed(seed, index) for seed in range(50) for index in range(20)}
    assert len(seeds) == 1000
    assert choice_seed(7, 0) == 7
    assert all(-(1 << 63) <= seed < 1 << 63 for seed in seeds)
