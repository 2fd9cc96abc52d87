"""Cache-aware against round robin on real workers, beside what `baton simulate` predicts from their step times.

    python benchmarks/policy_real.py --model-path examples/models/baton-tiny

Starts a bootstrap server and two undivided workers, measures what their steps cost, replays the same multi-turn trace
through a gateway with each policy in turn (caches flushed before), and runs the simulator on the same trace with these
costs. Cached tokens are the workers' own figures. On two cores the workers, the gateway and the clients share what they
run on, so a loaded machine stretches the measured times; cached shares and the order of the policies do not suffer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from baton_serving.gateway.admission.door import DoorConfig
from baton_serving.gateway.simulate.fleet import Shape, Simulation
from baton_serving.gateway.simulate.report import Account, Objective
from baton_serving.gateway.simulate.trace import GENERATED_BLOCK, Conversations, Trace, TraceRequest
from baton_serving.gateway.simulate.worker import Costs

POLICIES = ("round_robin", "cache_aware")
VOCABULARY = range(16, 1024)
WORKER_TOKENS = 24_000
PAGE = 16


@dataclass(frozen=True)
class Played:
    """One run: seconds to the first token, ordered, and the share of prompt tokens that caches held."""

    ttfts: list[float]
    cached: float

    @property
    def median(self) -> float:
        return self.ttfts[len(self.ttfts) // 2]

    @property
    def p90(self) -> float:
        return self.ttfts[len(self.ttfts) * 9 // 10]


class Processes:
    """Baton's commands as processes, ended together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *words: str) -> dict[str, str]:
        """Start `baton words…` and wait until it announces itself."""
        announced = self._folder / f"{name}.json"
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "baton_serving.cli.main", *words, "--announce-file", str(announced)],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._started.append(process)
        while not announced.exists():
            if process.poll() is not None:
                raise SystemExit(f"{name} ended: {(self._folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.1)
        told: dict[str, str] = json.loads(announced.read_text())
        return told

    def stop(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tokens_of(request: TraceRequest) -> list[int]:
    """Token ids that share beginnings as the trace says."""
    ids: list[int] = []
    for block in request.blocks:
        ids += random.Random(block).choices(VOCABULARY, k=GENERATED_BLOCK)
    own = random.Random(f"{request.session} {request.prompt_tokens}")  # a hash of text differs between processes
    return ids + own.choices(VOCABULARY, k=request.prompt_tokens - len(ids))


async def ask(session: aiohttp.ClientSession, url: str, prompt: Sequence[int], output: int) -> tuple[float, float]:
    """Seconds to the first token, and to the end."""
    body = {"model": "tiny", "prompt": list(prompt), "max_tokens": output, "ignore_eos": True, "stream": True}
    began = time.perf_counter()
    first = 0.0
    async with session.post(f"{url}/v1/completions", data=orjson.dumps({**body, "temperature": 0})) as response:
        response.raise_for_status()
        async for _ in response.content.iter_any():
            first = first or time.perf_counter() - began
    return first, time.perf_counter() - began


async def measure_costs(session: aiohttp.ClientSession, url: str) -> Costs:
    """Fit the simulator's costs to a worker that does nothing else: medians of a few runs of each kind."""
    draw = random.Random(5)

    def fresh(length: int) -> list[int]:
        return draw.choices(VOCABULARY, k=length)

    async def first_token(length: int) -> float:
        return sorted([(await ask(session, url, fresh(length), 1))[0] for _ in range(5)])[2]

    async def per_token(at_once: int, context: int) -> float:
        runs = await asyncio.gather(*(ask(session, url, fresh(context), 48) for _ in range(at_once)))
        return sorted((end - first) / 47 for first, end in runs)[at_once // 2]

    await first_token(256)
    short, long = await first_token(64), await first_token(1024)
    one, four, far = await per_token(1, 64), await per_token(4, 64), await per_token(1, 1536)
    prefill_token = max(1e-6, (long - short) / 960)
    row = max(0.0, (four - one) / 3)
    context_token = max(0.0, (far - one) / 1472)
    return Costs(
        prefill_step=max(1e-4, short - 64 * prefill_token),
        prefill_token=prefill_token,
        decode_step=max(1e-4, one - row - 64 * context_token),
        decode_row=row,
        decode_context_token=context_token,
        kv_tokens=WORKER_TOKENS,
        prefill_batch_tokens=512,
        page_size=PAGE,
    )


async def figures(session: aiohttp.ClientSession, urls: Sequence[str]) -> dict[str, float]:
    """Counters of all workers together."""
    sums: dict[str, float] = {}
    for url in urls:
        async with session.get(f"{url}/metrics") as response:
            for family in text_string_to_metric_families(await response.text()):
                for sample in family.samples:
                    sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


async def replay(session: aiohttp.ClientSession, gateway: str, workers: Sequence[str], trace: Trace) -> Played:
    """The trace at its own times through the gateway."""
    for url in workers:
        async with session.post(f"{url}/flush_cache") as response:
            response.raise_for_status()
    before = await figures(session, workers)
    began = time.perf_counter()

    async def one(request: TraceRequest) -> float:
        await asyncio.sleep(max(0.0, request.at - (time.perf_counter() - began)))
        return (await ask(session, gateway, tokens_of(request), request.output_tokens))[0]

    ttfts = sorted(await asyncio.gather(*(one(request) for request in trace.requests)))
    after = await figures(session, workers)
    gained = {name: after[name] - before.get(name, 0.0) for name in after}
    return Played(ttfts, gained["baton_cached_tokens_total"] / gained["baton_prompt_tokens_total"])


def simulated(trace: Trace, workers: int, policy: str, costs: Costs) -> Played:
    account = Account(Objective())
    Simulation(trace, Shape(0, workers, costs), policy, policy, DoorConfig(), account.add).run()
    outcome = account.outcome(policy, policy)
    return Played(sorted(account.ttfts), outcome.cache_hit)


def show(real: dict[str, Played], predicted: dict[str, Played], costs: Costs) -> None:
    table = Table(title="first token in ms, prompt tokens from caches")
    for head in ("", *(f"{name}, {kind}" for kind in ("real", "simulated") for name in POLICIES), "ratio real", "sim"):
        table.add_column(head, justify="right")
    rows: list[tuple[str, str, float]] = [
        ("TTFT p50", "median", 1000),
        ("TTFT p90", "p90", 1000),
        ("cached", "cached", 1),
    ]
    for name, field, scale in rows:
        values = [getattr(runs[policy], field) * scale for runs in (real, predicted) for policy in POLICIES]
        texts = [f"{value:.1%}" if field == "cached" else f"{value:.1f}" for value in values]
        ratios = [f"{values[at + 1] / max(1e-9, values[at]):.2f}" for at in (0, 2)]
        table.add_row(name, *texts, *ratios)
    Console(width=120).print(table)
    print(f"measured: {costs}")


@contextlib.contextmanager
def fleet(model: Path, count: int) -> Iterator[tuple[Processes, str, list[str]]]:
    """A bootstrap server's address and the workers' URLs."""
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(Path(folder))
        try:
            address = processes.start("bootstrap", "bootstrap", "--port", "0", "--http-port", "0")["grpc"]
            words = ("--model-path", str(model), "--port", "0", "--disaggregation-bootstrap-addr", address)
            limits = ("--served-model-name", "tiny", "--max-total-tokens", str(WORKER_TOKENS), "--page-size", str(PAGE))
            urls = [processes.start(f"worker-{n}", "serve", *words, *limits)["url"] for n in range(count)]
            yield processes, address, urls
        finally:
            processes.stop()


async def run(args: argparse.Namespace) -> None:
    trace = Conversations(
        requests=args.requests,
        rate=args.rate,
        turns=6,
        systems=3,
        system_tokens=128,
        question_tokens=96,
        answer_tokens=24,
        think_seconds=3.0,
        context_tokens=2048,
    ).trace(args.seed)
    with fleet(args.model_path, args.workers) as (processes, address, urls):
        timeout = aiohttp.ClientTimeout(total=300)
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"content-type": "application/json"}
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=headers) as session:
            costs = await measure_costs(session, urls[0])
            real: dict[str, Played] = {}
            for policy in POLICIES:
                words = ("--port", "0", "--bootstrap-addr", address, "--policy", policy, "--worker-wait", "30")
                gateway = processes.start(f"gateway-{policy}", "gateway", *words)["http"]
                real[policy] = await replay(session, gateway, urls, trace)
    predicted = {policy: simulated(trace, args.workers, policy, costs) for policy in POLICIES}
    show(real, predicted, costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
