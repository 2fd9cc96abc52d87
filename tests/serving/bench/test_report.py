import io
import math

from rich.console import Console

from baton_serving.bench.client import Ending, Outcome
from baton_serving.bench.report import Spread, summarise, tables


def test_percentiles_are_nearest_rank() -> None:
    spread = Spread.of([value / 1000 for value in range(1, 101)])
    assert (round(spread.p50), round(spread.p90), round(spread.p99), round(spread.mean, 1)) == (50, 90, 99, 50.5)
    assert math.isnan(Spread.of([]).p50)
    assert Spread.of([0.002]).p99 == 2.0


def test_a_summary_counts_every_request_once() -> None:
    outcomes = [
        Outcome(0.0, 2.0, [0.5, 1.0, 2.0], 10, 4, Ending.DONE),
        Outcome(1.0, 3.0, [1.25, 3.0], 10, 2, Ending.DONE),
        Outcome(1.0, 1.5, [1.25], 10, 1, Ending.DISCONNECTED),
        Outcome(1.0, 2.0, [], 0, 0, Ending.FAILED, "400: no"),
        Outcome(1.0, 2.0, [1.5], 10, 1, Ending.LOST, "broke off"),
    ]
    summary = summarise(outcomes, 4.0)
    assert summary.endings == {"done": 2, "failed": 1, "lost": 1, "disconnected": 1}
    assert summary.errors == {"400: no": 1, "broke off": 1}
    assert not summary.clean
    assert summarise(outcomes[:3], 4.0).clean
    assert (summary.prompt_tokens, summary.completion_tokens, summary.output_throughput) == (40, 8, 2.0)
    assert (summary.ttft.mean, summary.ttft.p99) == (375.0, 500.0)
    assert (summary.tpot.p50, summary.tpot.p99) == (500.0, 1750.0)
    assert summary.itl.count == 3
    assert summary.mean_concurrency == (2 + 2 + 0.5 + 1 + 1) / 4
    console = Console(width=100, file=io.StringIO(), record=True)
    for table in tables(summary):
        console.print(table)
    text = console.export_text()
    assert "2 done, 1 failed, 1 lost, 1 disconnected" in text
    assert "400: no" in text
