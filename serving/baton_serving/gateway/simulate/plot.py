"""Outcomes as a picture, with matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from baton_serving.errors import ConfigError
from baton_serving.gateway.simulate.report import Account, Outcome


def draw(path: Path, outcomes: Sequence[Outcome], accounts: Sequence[Account]) -> None:
    """Times to the first token as cumulative shares, goodput and cache hits as bars; .png or .svg by the name's end."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'baton[plot]'") from error
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    times, goodput, hits = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    names = [one.name for one in outcomes]
    for name, account in zip(names, accounts, strict=True):
        ordered = sorted(account.ttfts)
        times.plot(ordered, [(n + 1) / len(ordered) for n in range(len(ordered))], label=name)
    times.set(xscale="log", xlabel="seconds to the first token", ylabel="share of requests", ylim=(0, 1))
    times.legend(fontsize="small")
    times.grid(alpha=0.3)
    goodput.barh(names, [one.goodput for one in outcomes])
    goodput.set(xlabel="requests served well, per second")
    hits.barh(names, [100 * one.cache_hit for one in outcomes])
    hits.set(xlabel="prompt tokens from caches, %", yticklabels=[])
    for bars in (goodput, hits):
        bars.invert_yaxis()
    figure.savefig(path)
