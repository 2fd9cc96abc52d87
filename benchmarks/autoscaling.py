"""The operator's autoscaler in closed loop with simulated traffic, beside an oracle that knows all requests beforehand.

    PYTHONPATH=tests python benchmarks/autoscaling.py --hours 4 --seeds 1 2

The planner is the one that the operator runs; the fleet is that of `baton simulate`, of workers slow enough for a dozen
to be busy with few requests. Traffic goes from `--low` to `--high` requests a second and back, with `--surge` times as
much for a while on the way up. New workers take a minute to be ready. The oracle has workers ready just when they are
needed and is tried with several uses of them; the cheapest that serves 99% of requests in time counts. Exit status 1
when the autoscaler misses its bounds: 99% in time, at most 15% more replica-seconds, at most one change of direction in
ten minutes, and never without a serving set.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from support.scaled_fleet import ROLES, Autoscaler, Oracle, Outcome, ScaledFleet, day, traffic

from baton_serving.gateway.simulate.trace import Trace

USES = (0.95, 0.9)
FILLS = (0.78, 0.74, 0.71, 0.68)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--hours", type=float, default=4.0, help="length of the day")
    parser.add_argument("--low", type=float, default=4.0, help="requests a second in the night")
    parser.add_argument("--high", type=float, default=16.0, help="requests a second at noon")
    parser.add_argument("--surge", type=float, default=1.3, help="times as much in the surge")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="one day for each")
    found = "compare with this oracle, reckoned and not run, instead of searching one"
    parser.add_argument("--oracle", type=float, nargs=2, metavar=("USE", "FILL"), help=found)
    options = parser.parse_args()
    kept = [measured(options, seed) for seed in options.seeds]
    return 0 if all(kept) else 1


def measured(options: argparse.Namespace, seed: int) -> bool:
    """One day; whether the autoscaler kept its bounds."""
    seconds = options.hours * 3600
    rates = f"{options.low:g} to {options.high:g} requests/s over {options.hours:g} h, surge {options.surge:g}"
    table = Table(title=f"{rates}, seed {seed}")
    for head in ("who", "in time", "refused", "replica-seconds", "of oracle", "reversals", "gap s", "CPU s"):
        table.add_column(head, justify="right")
    trace = traffic(seconds, day(seconds, options.low, options.high, options.surge), seed)
    began = time.process_time()
    if options.oracle is None:
        best, use, fill = best_oracle(trace)
        least, shown = best.replica_seconds, cells(best, best.replica_seconds)
    else:
        use, fill = options.oracle
        least = Oracle(trace, use, fill).replica_seconds()
        shown = ("not run", "", f"{least:.0f}", "100.0%", "", "")
    table.add_row(f"oracle {use:g}/{fill:g}", *shown, f"{time.process_time() - began:.0f}")
    began = time.process_time()
    ours = ScaledFleet(trace, Autoscaler(), Oracle(trace, use, fill).at(0)).run()
    table.add_row("autoscaler", *cells(ours, least), f"{time.process_time() - began:.0f}")
    Console(width=120).print(table)
    kept = ours.good >= 0.99 and ours.replica_seconds <= 1.15 * least and ours.gap == 0
    return kept and all(ours.reversals(role) <= 1 for role in ROLES)


def best_oracle(trace: Trace) -> tuple[Outcome, float, float]:
    """The cheapest that serves 99% in time; from full workers on, as each step costs more."""
    for fill in FILLS:
        for use in USES:
            oracle = Oracle(trace, use, fill)
            outcome = ScaledFleet(trace, oracle, oracle.at(0)).run()
            if outcome.good >= 0.99:
                return outcome, use, fill
    raise SystemExit("no oracle serves 99% in time: the traffic is too steep")


def cells(outcome: Outcome, least: float) -> Sequence[str]:
    turns = "/".join(str(outcome.reversals(role)) for role in ROLES)
    return (
        f"{outcome.good:.2%} of {outcome.requests}",
        str(outcome.refused),
        f"{outcome.replica_seconds:.0f}",
        f"{outcome.replica_seconds / least:.1%}",
        turns,
        f"{outcome.gap:.0f}",
    )


if __name__ == "__main__":
    sys.exit(main())
