from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_serving.kv.layout import KVGroup, KVLayout
from baton_serving.kv.manager import KVManager
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.admission import NewTokenRatio, PageEstimate
from baton_serving.scheduling.request import Request


def make_kv(page_size: int = 4, windows: tuple[int | None, ...] = (None,), pages: int = 40) -> KVManager:
    groups = tuple(KVGroup((i,), window) for i, window in enumerate(windows))
    return KVManager(KVLayout(page_size, 1, 4, 4, "float32", groups), pages)


def test_the_ratio_falls_to_a_floor_and_starts_again() -> None:
    ratio = NewTokenRatio(1.0)
    assert ratio.value == pytest.approx(0.7)
    for _ in range(NewTokenRatio.DECAY_STEPS // 2):
        ratio.decay()
    assert ratio.value == pytest.approx(0.7 * (1 + NewTokenRatio.FLOOR) / 2)
    for _ in range(NewTokenRatio.DECAY_STEPS):
        ratio.decay()
    assert ratio.value == pytest.approx(0.7 * NewTokenRatio.FLOOR)
    ratio.reset()
    assert ratio.value == pytest.approx(0.7)


def test_the_ratio_never_passes_one() -> None:
    assert NewTokenRatio(5.0).value == 1.0


def test_a_retraction_sets_the_ratio_by_what_was_seen() -> None:
    ratio = NewTokenRatio(1.0)
    request = Request("r", [1], SamplingParams(max_new_tokens=99))
    request.output = [1] * 30
    ratio.after_retraction([request])
    assert ratio.value == pytest.approx(0.5)
    ratio.after_retraction([])
    assert ratio.value == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("windows", "chunk", "tokens", "pages"),
    [
        ((None,), None, 0, 0),
        ((None,), None, 5, 2),
        ((None, None), None, 5, 4),
        ((None, 4), None, 40, 20),  # without chunks a prompt fills its window groups at once
        ((None, 4), 4, 40, 10 + 4),  # the window and two chunks are three pages, and one for a page cut at both ends
        ((4,), 4, 4000, 4),
    ],
)
def test_pages_of_a_request(windows: tuple[int | None, ...], chunk: int | None, tokens: int, pages: int) -> None:
    assert PageEstimate(make_kv(windows=windows), chunk).pages(tokens) == pages


@given(st.integers(1, 5), st.integers(1, 60), st.sampled_from([(None,), (None, 6), (None, 3, 6)]), st.integers(1, 9))
def test_the_largest_request_just_fits(page_size: int, pages: int, windows: tuple[int | None, ...], chunk: int) -> None:
    estimate = PageEstimate(make_kv(page_size, windows, pages), chunk)
    largest = estimate.largest_request()
    assert estimate.pages(largest) <= pages
    assert estimate.pages(largest + 1) > pages or largest == pages * page_size


def test_growth_counts_from_what_is_held() -> None:
    kv = make_kv(windows=(None, 4))
    held = kv.open("r", "", kv.match("", b"", 0))
    kv.grow(held, 8)
    estimate = PageEstimate(kv, 4)
    assert estimate.growth(held, 8) == 0
    assert estimate.growth(held, 9) == 2
    assert estimate.growth(held, 40) == 8 + 2  # the window group holds two of at most four
