"""Baton's gateway beside SGLang's router, in front of the same scripted workers: rate, CPU, first token.

    python benchmarks/gateway_speed.py

Two prefill and two decode workers that answer at once, and clients, share one core; the gateway has another. Baton runs
with policy, admission, metrics and trace headers on, SGLang's router in prefill/decode mode (`pip install
sglang-router==0.3.2`). CPU is the gateway's own, from the kernel's accounts. `direct` is what clients and one worker
reach without anything between: a floor of the time and a ceiling of the rate. `busy` is how much of its core the
gateway used: where that is well below 1, the rate is that of clients and workers. Needs two cores to mean anything.

An interpreter that was built without profile-guided optimisation, as pyenv builds it by default, takes some 14% more
CPU a request than that of a distribution or of the images; `--python` says which one runs the gateway.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from functools import reduce
from operator import add
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from baton_bootstrap.records import Role
from gateway_peers import chat_request
from gateway_targets import LOAD_CORE, Measured, Target, baton, serve_workers, sglang_router


async def in_turn(
    targets: list[Target], args: argparse.Namespace, request: bytes, concurrency: int, spread: float = 0.0
) -> list[Measured]:
    """Each target's runs, taken in turn: what else the machine does then meets all alike."""
    rounds = [
        [await one.measure(request, concurrency, args.seconds / args.rounds, spread) for one in targets]
        for _ in range(args.rounds)
    ]
    return [reduce(add, runs) for runs in zip(*rounds, strict=True)]


async def rates(targets: list[Target], args: argparse.Namespace, console: Console) -> None:
    columns = (f"{one.name} {what}" for one in targets for what in ("req/s", "µs CPU", "busy"))
    table = Table("concurrency", *columns, "ratios", title="Whole answers")
    for concurrency in args.concurrency:
        runs = await in_turn(targets, args, chat_request(stream=False), concurrency)
        cells = [text for run in runs for text in (f"{run.rate:,.0f}", f"{run.cpu_per_request:.1f}", f"{run.busy:.2f}")]
        table.add_row(str(concurrency), *cells, _ratios(runs))
        _warn(runs, console)
    console.print(table)


def _ratios(runs: list[Measured]) -> str:
    ours, theirs = runs[0], runs[1]
    if not ours.tally.requests or not theirs.cpu:  # none beside it but a worker, whose CPU does not count
        return ""
    return f"{ours.rate / theirs.rate:.2f}× rate, {ours.cpu_per_request / theirs.cpu_per_request:.2f}× CPU"


def _warn(runs: list[Measured], console: Console) -> None:
    for run in runs:
        if run.tally.failed:
            console.print(f"[red]{run.tally.failed} of {run.tally.requests} failed")


async def streams(targets: list[Target], args: argparse.Namespace, console: Console) -> None:
    table = Table("stream", "gateway", "events/s", "µs CPU/event", "busy", "first p50", "first p99", title="Streams")
    cases = (
        ("burst of 128 events, 16 at once", chat_request(stream=True, events=128), 16, 0.0),
        ("50 events, 20 ms apart, 64 at once", chat_request(stream=True, events=50, pace=0.02), 64, 1.0),
    )
    for name, request, concurrency, spread in cases:
        for one, run in zip(targets, await in_turn(targets, args, request, concurrency, spread), strict=True):
            first = sorted(run.tally.first)
            at = [first[min(len(first) - 1, int(len(first) * share))] * 1e3 for share in (0.5, 0.99)]
            rate, cpu = f"{run.tally.events / run.seconds:,.0f}", f"{run.cpu_per_event:.1f}"
            table.add_row(name, one.name, rate, cpu, f"{run.busy:.2f}", f"{at[0]:.2f} ms", f"{at[1]:.2f} ms")
            _warn([run], console)
    console.print(table)


async def scaling(workers: list[tuple[Role, int]], folder: Path, args: argparse.Namespace, console: Console) -> None:
    """Two processes share both cores with workers and clients: CPU per request says more than the rate here."""
    table = Table("processes", "req/s", "µs CPU/req", "busy", title="Processes")
    for processes in (1, 2):
        async with baton(workers, folder, processes, args.python) as target:
            run = await target.measure(chat_request(stream=False), 128, args.seconds)
            table.add_row(str(processes), f"{run.rate:,.0f}", f"{run.cpu_per_request:.1f}", f"{run.busy:.2f}")
    console.print(table)


async def run(args: argparse.Namespace) -> None:
    console = Console()
    os.sched_setaffinity(0, {LOAD_CORE})
    console.print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
    workers, servers = await serve_workers()
    decode = next(port for role, port in workers if role is Role.DECODE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            targets = [await stack.enter_async_context(baton(workers, folder, python=args.python))]
            if not args.alone:
                targets.append(await stack.enter_async_context(sglang_router(workers, folder)))
            direct = Target("direct", decode, [])
            await rates([*targets, direct], args, console)
            await streams([*targets, direct], args, console)
        if args.scaling:
            await scaling(workers, folder, args, console)
    for server in servers:
        server.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each figure")
    parser.add_argument("--rounds", type=int, default=3, help="turns in which the gateways share these seconds")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--python", default=sys.executable, help="interpreter of Baton's gateway: builds of it differ")
    parser.add_argument("--alone", action="store_true", help="leave SGLang's router out")
    parser.add_argument("--scaling", action="store_true", help="also compare one process with two")
    args = parser.parse_args()
    uvloop.run(run(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
