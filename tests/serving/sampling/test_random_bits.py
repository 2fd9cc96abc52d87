import torch
from hypothesis import given
from hypothesis import strategies as st

from baton_serving.sampling.random_bits import random_bits
from baton_serving.sampling.seeds import GOLDEN, as_signed, mix64, stream_key

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@given(st.lists(st.tuples(INT64, st.integers(0, 1 << 40)), min_size=1, max_size=8))
def test_random_bits_are_the_host_stream(rows: list[tuple[int, int]]) -> None:
    keys = [stream_key(seed) for seed, _ in rows]
    positions = [position for _, position in rows]
    expected = [as_signed(mix64(key + (position + 1) * GOLDEN)) for key, position in zip(keys, positions, strict=True)]
    assert random_bits(torch.tensor(keys), torch.tensor(positions)).tolist() == expected
