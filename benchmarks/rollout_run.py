"""New weights under load: what does a client see while they roll in, and what does it cost?

    python benchmarks/rollout_run.py --shape 2P2D --strategy InPlace

Runs a manifest with the parts of `baton up`, holds 50 chat streams open at all times, and changes the manifest from
baton-tiny to baton-tiny-v2, which signs its answers. Prints failed requests, answers of more than one version, cache
hits across versions, pairs of unequal weights that the gateway asked, instants without a serving set, every change of
the serving sets, how long the change took, how far throughput fell meanwhile, and for a change in place how long each
worker stood still. Exit status 1 when any of the first five is not zero.

With `--plant` the run must fail: `pairing` has the gateway pair workers whatever weights they serve, `handshake` has
the workers take any peer besides.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from baton_serving.bench.arguments import count
from baton_serving.local.rollout import RolloutStatus
from baton_serving.local.service import LocalService
from versions import Recorder, Tally, ask, judge

MODELS = Path(__file__).resolve().parents[1] / "examples" / "models"
SHOWN = 5  # complaints of a kind

# What is put in the place of a function, in processes whose command line holds the word.
_PAIRING = ("gateway", "baton_serving.gateway.fleet", "fits", "lambda prefill, decode: True")
_HANDSHAKE = ("baton_serving.runtime.child", "baton_serving.handoff.layout", "check_compatible", "lambda *_: None")
PLANTS = {"pairing": (_PAIRING,), "handshake": (_PAIRING, _HANDSHAKE)}


def manifest(model: Path, args: argparse.Namespace) -> str:
    prefill, decode = (int(part) for part in args.shape.upper().removesuffix("D").split("P"))
    extra = '["--max-total-tokens", "32768", "--enable-cache-report", "--log-level", "warning"]'
    return f"""
apiVersion: baton.dev/v1alpha1
kind: InferenceService
metadata: {{name: roll}}
spec:
  model: {{uri: "file://{model}", servedName: tiny}}
  prefill: {{replicas: {prefill}, extraArgs: {extra}}}
  decode: {{replicas: {decode}, extraArgs: {extra}}}
  transfer: {{backend: {args.backend}, protocol: tcp}}
  rollout:
    strategy: {args.strategy}
    progressSeconds: 300
    gates: {{probe: {{prompt: "What is 2 + 3?", expect: "5"}}}}
"""


async def load(service: LocalService, args: argparse.Namespace, tally: Tally, over: threading.Event) -> None:
    """Keep `args.streams` requests under way until `over`; every prompt comes back now and then."""
    numbers = itertools.count()
    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        Recorder(service.bootstrap, tally),
        aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
    ):

        async def client() -> None:
            while not over.is_set():
                tally.answers.append(await ask(session, service.url, next(numbers) % args.prompts))

        await asyncio.gather(*(client() for _ in range(args.streams)))


def rates(tally: Tally, begin: float, end: float) -> tuple[float, float]:
    """Pieces of text per second: on average before `begin`, and in the worst second between `begin` and `end`."""
    times = sorted(at for answer in tally.answers for at in answer.tokens)
    first = times[0]
    before = sum(first <= at < begin for at in times) / (begin - first)
    bins = Counter(int(at - begin) for at in times if begin <= at < end)
    return before, min(bins.get(second, 0) for second in range(max(1, int(end - begin))))


def run(args: argparse.Namespace, folder: Path, console: Console) -> bool:
    path = folder / "manifest.yaml"
    path.write_text(manifest(MODELS / "baton-tiny", args))
    if args.plant:
        plant(args.plant, folder)
    service = LocalService(path)
    tally, over = Tally(), threading.Event()
    begun = time.monotonic()
    with service:
        console.print(f"ready after {time.monotonic() - begun:.0f} s")
        service.rollout.on_news = lambda news: console.print(f"{news.phase}: {news.message}", markup=False)
        old = {entry.worker.weight_digest for entry in service.view.entries.values()}
        loop = asyncio.new_event_loop()  # not closed before the service's: gRPC polls for both
        loading = threading.Thread(
            target=lambda: loop.run_until_complete(load(service, args, tally, over)), daemon=True
        )
        loading.start()
        time.sleep(args.seconds)
        console.print(f"{len(tally.answers)} answers so far; now the manifest changes")
        begin = time.monotonic()
        path.write_text(manifest(MODELS / "baton-tiny-v2", args))
        status = _wait_for_the_end(service, args.limit)
        end = time.monotonic()
        time.sleep(args.seconds)
        over.set()
        loading.join(130)
    loop.close()
    new = set(tally.weights.values()) - old
    judged = judge(tally, next(iter(new), ""))
    report(args, tally, judged, (begin, end), console)
    return status.phase == "Done" and not any(judged.values())


def plant(name: str, folder: Path) -> None:
    """Have processes that are started from now on begin with a fault."""
    lines = ["import importlib, sys"]
    for word, module, function, fault in PLANTS[name]:
        lines.append(f"if {word!r} in sys.orig_argv:")
        lines.append(f"    importlib.import_module({module!r}).{function} = {fault}")
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def _wait_for_the_end(service: LocalService, limit: float) -> RolloutStatus:
    deadline = time.monotonic() + limit
    first = service.rollout_status().version
    while True:
        status = service.rollout_status()
        if status.version != first and status.phase in ("Done", "Failed"):
            return status
        if time.monotonic() > deadline:
            return status
        time.sleep(0.1)


def report(
    args: argparse.Namespace,
    tally: Tally,
    judged: dict[str, list[str]],
    span: tuple[float, float],
    console: Console,
) -> None:
    begin, end = span
    table = Table(title=f"{args.shape}, {args.strategy}, {args.streams} streams", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    versions = Counter(next(iter(answer.digests))[:8] for answer in tally.answers if len(answer.digests) == 1)
    before, worst = rates(tally, begin, end)
    rows = {
        "requests": str(len(tally.answers)),
        "failed": str(len(judged["failed"])),
        "answers of more than one version": str(len(judged["mixed"])),
        "cache hits across versions": str(len(judged["cache"])),
        "pairs of unequal weights asked": str(len(judged["pairs"])),
        "instants without a serving set": f"{len(judged['without'])} of {tally.views} views of the workers",
        "answers by version": ", ".join(f"{digest}: {number}" for digest, number in versions.items()),
        "whose workers the gateway named": str(sum(answer.attempts is not None for answer in tally.answers)),
        "tried again by the gateway": str(sum(len(answer.attempts or ()) > 1 for answer in tally.answers)),
        "seconds until all workers serve the new weights": f"{end - begin:.1f}",
        "pieces of text per second before": f"{before:.0f}",
        "in the worst second of the change": f"{worst:.0f} ({100 * worst / before:.0f}%)",
        "first piece of text before, median and longest": _first_texts(tally, 0.0, begin),
        "during the change": _first_texts(tally, begin, end),
    }
    for name in sorted(tally.gaps):
        rows[f"{name} stood still for its switch"] = f"{1000 * tally.gaps[name]:.1f} ms"
    for name in sorted(tally.away):
        rows[f"{name} took no new requests"] = f"{tally.away[name]:.2f} s"
    for what, figure in rows.items():
        table.add_row(what, figure)
    console.print(table)
    for at, sets in tally.sets:
        told = ", ".join(f"{number} of {digest[:8]}" for digest, number in sorted(sets.items()))
        console.print(f"{at - begin:+8.3f} s: serving sets: {told or 'none'}", markup=False, highlight=False)
    for kind, complaints in judged.items():
        for complaint in complaints[:SHOWN]:
            console.print(f"{kind}: {complaint[:300]}", markup=False)


def _first_texts(tally: Tally, begin: float, end: float) -> str:
    waits = [answer.tokens[0] - answer.sent for answer in tally.answers if answer.tokens and begin <= answer.sent < end]
    return f"{statistics.median(waits):.2f}, {max(waits):.2f} s" if waits else "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="2P2D", help="prefill and decode workers")
    parser.add_argument("--strategy", choices=["Surge", "InPlace"], default="InPlace")
    parser.add_argument("--backend", choices=["mooncake", "nixl"], default="mooncake")
    parser.add_argument("--streams", type=count, default=50)
    parser.add_argument("--prompts", type=count, default=150, help="distinct questions")
    parser.add_argument("--seconds", type=float, default=8.0, help="of load before and after the change")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that the change may take")
    parser.add_argument("--plant", choices=list(PLANTS), help="a fault with which the run must fail")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        passed = run(args, Path(folder), Console(width=120))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
