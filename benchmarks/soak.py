"""Thousands of requests, many of them abandoned by their clients, and then: is anything left behind?

    python benchmarks/soak.py --model-path examples/models/baton-tiny

Starts `baton serve`, sends 5,000 requests at concurrency 64 (prompts that share prefixes, answers of different
lengths, native and OpenAI routes in turn), one in five of whose clients leaves at a random moment, and checks at the
end that every request had its terminal reply, that all KV pages are free or cached, and that memory and open files of
every process stayed flat. Prints a table; exit status 1 when a check failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from baton_serving.bench.arguments import count, fraction, progress_bar
from baton_serving.bench.client import Client, Ending, Outcome
from baton_serving.bench.load import Pace, disconnects, offer
from baton_serving.bench.protocols import ROUTES, Sampling
from baton_serving.bench.report import Summary, summarise, tables
from baton_serving.bench.workload import Item, Lengths, shared_prefix_items

START_SECONDS = 120.0
SETTLE_SECONDS = 20.0
SAMPLE_SECONDS = 1.0
GROWTH_ALLOWED = 1.03  # of resident memory, between the middle and the end of the run …
GROWTH_ALLOWED_MB = 8.0  # … or this much, for small processes
ROUTE_NAMES = ("native", "completions")


@dataclass(frozen=True)
class Check:
    """One thing that must hold at the end."""

    what: str
    found: str
    holds: bool


@dataclass
class Memory:
    """Resident memory and open files of the server's processes, sampled over the run."""

    server: psutil.Process
    resident: dict[int, list[float]] = field(default_factory=dict)  # MB by process
    files: dict[int, list[int]] = field(default_factory=dict)

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    def sample(self) -> None:
        for process in (self.server, *self.server.children(recursive=True)):
            self.resident.setdefault(process.pid, []).append(process.memory_info().rss / 1e6)
            self.files.setdefault(process.pid, []).append(process.num_fds())

    def checks(self) -> Iterator[Check]:
        """The medians of the second and of the last quarter of the run must be alike."""
        for pid, samples in self.resident.items():
            middle, end = _quarter(samples, 1), _quarter(samples, 3)
            flat = end <= max(middle * GROWTH_ALLOWED, middle + GROWTH_ALLOWED_MB)
            yield Check(f"resident memory of {self._name(pid)}", f"{middle:.1f} MB, then {end:.1f} MB", flat)
        for pid, counts in self.files.items():
            yield Check(f"open files of {self._name(pid)}", f"{counts[0]}, then {counts[-1]}", counts[-1] <= counts[0])

    def _name(self, pid: int) -> str:
        order = sorted(self.resident)
        return "the API process" if pid == self.server.pid else f"child {order.index(pid)} ({pid})"


def _quarter(samples: list[float], number: int) -> float:
    """Median of quarter `number` (0 to 3) of `samples`."""
    start = len(samples) * number // 4
    return statistics.median(samples[start : max(start + 1, len(samples) * (number + 1) // 4)])


@contextmanager
def serving(model_path: str, flags: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A started `baton serve`: its base URL and process. Stopped at the end."""
    with tempfile.TemporaryDirectory() as folder:
        announced = Path(folder) / "announced.json"
        command = [sys.executable, "-m", "baton_serving.cli.main", "serve", "--model-path", model_path, "--port", "0"]
        process = subprocess.Popen([*command, "--announce-file", str(announced), *flags])
        try:
            deadline = time.monotonic() + START_SECONDS
            while not announced.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the server did not start")
                time.sleep(0.1)
            yield json.loads(announced.read_text())["url"], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


async def run(args: argparse.Namespace, url: str, server: psutil.Process, progress: Progress) -> list[Check]:
    """Send everything, then look at what is left."""
    lengths = Lengths(args.input_len, args.output_len, 0.1)
    items = shared_prefix_items(args.requests, 50, 64, lengths, args.vocab_size, args.seed)
    leaving = disconnects(items, args.disconnect, args.seed)
    memory = Memory(server)
    timeout = aiohttp.ClientTimeout(total=300, sock_connect=10)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        clients = [Client(session, url, ROUTES[name]) for name in ROUTE_NAMES]
        task = progress.add_task("requests", total=len(items))
        async with session.get(f"{url}/v1/models") as response:
            model = (await response.json())["data"][0]["id"]

        async def send(index: int, item: Item) -> Outcome:
            which = index % len(clients)
            body = ROUTES[ROUTE_NAMES[which]].body(item, model, Sampling(temperature=0.7))
            return await clients[which].send(body, leaving[index])

        memory.sample()
        watching = asyncio.create_task(memory.watch())
        begin = time.perf_counter()
        outcomes = await offer(
            items, send, Pace(concurrency=args.concurrency), args.seed, lambda _: progress.advance(task)
        )
        summary = summarise(outcomes, time.perf_counter() - begin)
        watching.cancel()
    for table in tables(summary):
        progress.console.print(table)
    figures, info = await settled(url)
    memory.sample()
    return [*replies(summary, args), *pages(figures, info), *memory.checks()]


async def settled(url: str) -> tuple[dict[str, float], dict[str, float]]:
    """`/metrics` and the scheduler's part of `/server_info` once nothing runs any more, or after a while."""
    deadline = time.monotonic() + SETTLE_SECONDS
    # One connection a call, so that none is open when the server's files are counted.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        while True:
            async with session.get(f"{url}/metrics") as response:
                families = text_string_to_metric_families(await response.text())
                samples = [sample for family in families for sample in family.samples]
            figures = {sample.name: sample.value for sample in samples if not sample.labels}
            async with session.get(f"{url}/server_info") as response:
                info = (await response.json())["internal_states"][0]
            if figures["baton_kv_pages_in_use"] == 0 or time.monotonic() > deadline:
                return figures, info
            await asyncio.sleep(0.5)


def replies(summary: Summary, args: argparse.Namespace) -> Iterator[Check]:
    """Every request ended in a reply, or its client had left."""
    ended = summary.endings
    yield Check("requests without a terminal reply", str(ended[Ending.LOST.value]), ended[Ending.LOST.value] == 0)
    yield Check("failed requests", str(ended[Ending.FAILED.value]), ended[Ending.FAILED.value] == 0)
    left = ended[Ending.DISCONNECTED.value]
    enough = left >= 0.8 * args.disconnect * args.requests
    yield Check("clients that left", f"{left} of {summary.requests}", enough)


def pages(figures: dict[str, float], info: dict[str, float]) -> Iterator[Check]:
    """The page pool as `/metrics` and `/server_info` show it, which must agree."""
    total = figures["baton_kv_pages"]
    free, cached, in_use, quarantined = (
        figures[f"baton_kv_pages_{state}"] for state in ("free", "cached", "in_use", "quarantined")
    )
    found = f"{free:.0f} free + {cached:.0f} cached of {total:.0f}, {in_use:.0f} in use, {quarantined:.0f} quarantined"
    yield Check("KV pages", found, free + cached == total and in_use == quarantined == 0)
    open_requests = {name: info[f"requests_{name}"] for name in ("waiting", "running", "prefilling", "reserved")}
    agree = info["pages_free"] == free and info["pages_cached"] == cached
    yield Check(
        "open requests in /server_info", str(sum(open_requests.values())), agree and not any(open_requests.values())
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="examples/models/baton-tiny")
    parser.add_argument("--requests", type=count, default=5000)
    parser.add_argument("--concurrency", type=count, default=64)
    parser.add_argument("--disconnect", type=fraction, default=0.2)
    parser.add_argument("--input-len", type=count, default=128)
    parser.add_argument("--output-len", type=count, default=48)
    parser.add_argument("--vocab-size", type=count, default=256)
    parser.add_argument("--seed", type=int, default=0)
    # A pool that fills early: its memory is touched, and so counted, page by page.
    parser.add_argument("--max-total-tokens", type=count, default=32768)
    args, flags = parser.parse_known_args()
    console = Console()
    flags += ["--max-total-tokens", str(args.max_total_tokens)]
    with serving(args.model_path, flags) as (url, server), progress_bar(console) as progress:
        checks = asyncio.run(run(args, url, server, progress))
    result = Table("check", "found", "", title="Soak", title_justify="left")
    for check in checks:
        result.add_row(check.what, check.found, "[green]holds" if check.holds else "[red]violated")
    console.print(result)
    return 0 if all(check.holds for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
