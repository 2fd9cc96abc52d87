"""Rates of links: weighed by bytes, fading, bounded."""

from __future__ import annotations

import pytest

from baton_serving.runtime.link_rates import LinkRates


def test_a_rate_is_bytes_over_the_time_they_took() -> None:
    links = LinkRates()
    links.add("p-0", 300, 1.0)
    links.add("p-1", 0, 0.0)  # everything was cached: nothing moved
    assert links.rates() == {"p-0": 300.0}
    links.add("p-0", 10, 1.0)
    assert links.rates()["p-0"] == pytest.approx((270 + 10) / 1.9)


def test_what_is_long_ago_fades() -> None:
    links = LinkRates()
    links.add("p-0", 1000, 1.0)
    for _ in range(100):
        links.add("p-0", 10, 1.0)
    assert links.rates()["p-0"] == pytest.approx(10.0, rel=0.01)


def test_the_last_senders_are_remembered() -> None:
    links = LinkRates()
    for number in range(100):
        links.add(f"p-{number}", 1, 1.0)
        links.add("often", 1, 1.0)
    assert len(links.rates()) == 64
    assert {"often", "p-99", "p-37"} <= links.rates().keys()
    assert "p-36" not in links.rates()
