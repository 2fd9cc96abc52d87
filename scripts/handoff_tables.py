"""Write the state tables of docs/internals/handoff.md from the machines, or say with --check that they are stale."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path

from baton_serving.handoff.machines import RECEIVE_TABLE, SEND_TABLE, A, E, S, Table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "internals" / "handoff.md"


def rows(table: Table[S, E, A]) -> str:
    """One line per (state, next state, actions), with the events that lead there."""
    merged: dict[tuple[S, S, tuple[A, ...]], list[str]] = {}
    for (state, event), (after, actions) in table.listed.items():
        merged.setdefault((state, after, actions), []).append(_word(event))
    order = list(type(next(iter(merged))[0]))
    lines = ["| state | on | becomes | and does |", "|---|---|---|---|"]
    for (state, after, actions), events in sorted(
        merged.items(), key=lambda item: (order.index(item[0][0]), order.index(item[0][1]))
    ):
        becomes = "–" if after is state else _word(after)
        does = ", ".join(_word(action) for action in actions) or "–"
        lines.append(f"| {_word(state)} | {', '.join(events)} | {becomes} | {does} |")
    return "\n".join(lines)


def _word(member: Enum) -> str:
    return member.name.lower().replace("_", " ")


def page(text: str) -> str:
    """`text` with both tables brought up to date."""
    for name, table in (("send", rows(SEND_TABLE)), ("receive", rows(RECEIVE_TABLE))):
        before, mark, rest = text.partition(f"<!-- {name} table -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not mark or not end:
            raise SystemExit(f"{PAGE.name} has no place for the {name} table")
        text = f"{before}{mark}{table}\n{end}{after}"
    return text


def main(check: bool) -> int:
    """Exit status 1 when `check` finds the page stale."""
    text = PAGE.read_text()
    fresh = page(text)
    if text != fresh and not check:
        PAGE.write_text(fresh)
    if text != fresh:
        print(f"{PAGE.name} " + ("is stale: run python scripts/handoff_tables.py" if check else "written"))
    return int(check and text != fresh)


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
