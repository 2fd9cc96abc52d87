"""Where the time of one request went, from what the workers report and the client's own clock."""

from __future__ import annotations

from dataclasses import dataclass

from baton_serving.runtime.messages import Timings

_BAR = 16  # characters for the whole length


@dataclass(frozen=True)
class Stage:
    """A stretch of a request's time, in seconds from the moment the client sent it."""

    name: str
    start: float
    end: float
    note: str = ""


def stages(sent: float, ended: float, timings: Timings) -> list[Stage]:
    """The stages that the request passed, in order. `sent` and `ended` are the client's unix times.

    A stage runs from the one before it to its own time; pages move while prefill goes on, so that stage overlaps.
    """
    marks = [
        ("tokenised", timings.queued),
        ("queued", timings.scheduled),
        ("prefilled", timings.prefilled),
        ("first token", timings.first_token),
        ("done", ended),
    ]
    found: list[Stage] = []
    before = sent
    for name, time in marks:
        if time:
            found.append(Stage(name, before - sent, max(before, time) - sent))
            before = max(before, time)
    if timings.transferred:
        start = max(timings.transfer_started, timings.scheduled, sent)
        moved = Stage("moved", start - sent, timings.transferred - sent, _moved(timings))
        at = next((index for index, stage in enumerate(found) if stage.name == "first token"), len(found))
        found.insert(at, moved)
    return found


def timeline_lines(found: list[Stage]) -> list[str]:
    """A line per stage, below 80 characters: how long it took, when it ended, and a bar on a common axis."""
    whole = max((stage.end for stage in found), default=0.0) or 1.0
    lines = [f"{'stage':<12}{'took':>10}{'at':>10}"]
    for stage in found:
        left = min(round(_BAR * stage.start / whole), _BAR - 1)
        bar = " " * left + "━" * max(1, round(_BAR * stage.end / whole) - left)
        line = f"{stage.name:<12}{_ms(stage.end - stage.start):>10}{_ms(stage.end):>10}  {bar:<{_BAR}} {stage.note}"
        lines.append(line.rstrip())
    return lines


def _moved(timings: Timings) -> str:
    pages = f"{timings.transfer_bytes / 1e6:.1f} MB, {timings.transfer_pages} pages"
    if not timings.transfer_seconds:
        return pages
    return f"{pages}, {timings.transfer_bytes / timings.transfer_seconds / 1e9:.2f} GB/s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
