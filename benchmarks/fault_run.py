"""Requests through prefill and decode workers of which one is killed every few seconds: what does a client see?

    python benchmarks/fault_run.py --model-path examples/models/baton-tiny

Starts a bootstrap server, two prefill and two decode workers, and an undivided worker whose greedy answers are the
truth. Then it sends 500 requests at concurrency 8, each to a pair of its choice and, when a leg fails, to another pair
(at most `--attempts` in all), while a random worker is killed (SIGKILL, children too) every few seconds and started
again at its address. Prints what failed, what was tried again, which answers were wrong, which pages leaked, and how
long after a kill the client went on, and would have gone on by the decode worker's word alone. Exit status 1 when an
answer was wrong, a request failed, or a page leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from baton_serving.bench.arguments import count, progress_bar

TIE = 2e-4  # greedy answers may part where the two likeliest tokens are closer than this
SETTLE_SECONDS = 30.0
HELD = ("kv_pages_in_use", "kv_pages_quarantined", "handoff_source_pages_quarantined", "requests_reserved")

Body = dict[str, Any]


class LegFailed(Exception):
    """A leg ended without its answer, at `when` by the monotonic clock."""

    def __init__(self, worker: Worker, reason: str) -> None:
        super().__init__(f"{worker.name}: {reason}")
        self.worker = worker
        self.when = time.monotonic()


@dataclass
class Worker:
    """A worker process that can be killed and started again at the same port."""

    name: str
    command: list[str]
    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    killed: float = 0.0  # when, by the monotonic clock
    ready: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> dict[str, Any]:
        """Start, and return what it announces once it serves."""
        announced = self.folder / f"{self.name}.json"
        announced.unlink(missing_ok=True)
        self.process = self._spawn("--port", str(self.port), "--announce-file", str(announced))
        while not announced.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} did not start:\n{self._log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)
        facts: dict[str, Any] = json.loads(announced.read_text())
        self.port = int(facts.get("http_port", 0))
        self.ready = True
        return facts

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def _spawn(self, *ports: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "baton_serving.cli.main", *self.command, *ports]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """End it and its children at once."""
        self.ready = False
        self.killed = time.monotonic()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass
class Tally:
    """What happened."""

    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    retried: int = 0
    kills: int = 0
    survivor: list[float] = field(default_factory=list)  # seconds from a prefill's death to the decode leg's error
    client: list[float] = field(default_factory=list)  # seconds from a kill to the client's next step


class Run:
    """The fleet under load. Pairs are drawn among the workers that are up."""

    def __init__(
        self, session: aiohttp.ClientSession, prefills: list[Worker], decodes: list[Worker], seed: int
    ) -> None:
        self._session = session
        self._prefills = prefills
        self._decodes = decodes
        self._draw = random.Random(seed)
        self.tally = Tally()

    @property
    def workers(self) -> list[Worker]:
        return self._prefills + self._decodes

    async def ask(self, number: int, body: Body, truth: Body, attempts: int) -> None:
        """One request until it is answered or out of attempts."""
        reason = ""
        for attempt in range(attempts):
            prefill, decode = await self._pair()
            try:
                answer = await self._attempt(prefill, decode, body)
            except LegFailed as error:
                reason = str(error)
                self.tally.retried += attempt + 1 < attempts
                continue
            complaint = difference(answer, truth)
            if complaint:
                self.tally.wrong.append(f"request {number}: {complaint}")
            return
        self.tally.failed.append(f"request {number}: {reason}")

    async def _pair(self) -> tuple[Worker, Worker]:
        while True:
            prefills = [worker for worker in self._prefills if worker.ready]
            decodes = [worker for worker in self._decodes if worker.ready]
            if prefills and decodes:
                return self._draw.choice(prefills), self._draw.choice(decodes)
            await asyncio.sleep(0.05)

    async def _attempt(self, prefill: Worker, decode: Worker, body: Body) -> Body:
        begun = time.monotonic()
        ticket = {"transfer_id": uuid.uuid4().hex}
        peer = {**ticket, "peer": f"127.0.0.1:{prefill.port}"}
        legs = [
            asyncio.create_task(self._leg(prefill, {**body, "baton_handoff": ticket})),
            asyncio.create_task(self._leg(decode, {**body, "baton_handoff": peer})),
        ]
        done, _ = await asyncio.wait(legs, return_when=asyncio.FIRST_EXCEPTION)
        failure = next((leg.exception() for leg in legs if leg in done and leg.exception()), None)
        if failure is None:
            return legs[1].result()
        assert isinstance(failure, LegFailed)
        if legs[1] in done and legs[1].exception() is None:
            return legs[1].result()  # the prefill worker died when its part was done
        await self._measure(legs, prefill, decode, begun, failure.when)
        for leg in legs:
            leg.cancel()
        raise failure

    async def _measure(
        self, legs: Sequence[asyncio.Task[Body]], prefill: Worker, decode: Worker, begun: float, noticed: float
    ) -> None:
        """Times since the kill that ended an attempt. A dead prefill worker's request is answered by decode."""
        for dead in (prefill, decode):
            if begun <= dead.killed <= noticed:
                self.tally.client.append(noticed - dead.killed)
        if begun <= prefill.killed <= noticed and decode.ready:
            with contextlib.suppress(LegFailed):
                await legs[1]
            error = legs[1].exception()
            if isinstance(error, LegFailed):
                self.tally.survivor.append(error.when - prefill.killed)

    async def _leg(self, worker: Worker, body: Body) -> Body:
        try:
            async with self._session.post(f"{worker.url}/generate", json=body) as response:
                content: Body = await response.json()
                if response.status != 200:
                    raise LegFailed(worker, f"{response.status} {content['error']['message']}")
        except (aiohttp.ClientError, OSError) as error:
            raise LegFailed(worker, repr(error)) from error
        return content

    async def havoc(self, period: float) -> None:
        """Kill a worker every `period` seconds, never the last of its kind, and start it again; until cancelled."""
        async with asyncio.TaskGroup() as starting:
            while True:
                await asyncio.sleep(period)
                kinds = [kind for kind in (self._prefills, self._decodes) if all(worker.ready for worker in kind)]
                if kinds:
                    victim = self._draw.choice(self._draw.choice(kinds))
                    victim.kill()
                    self.tally.kills += 1
                    starting.create_task(victim.start())


def difference(answer: Body, truth: Body) -> str:
    """What is wrong with an answer, if anything."""
    ours, theirs = answer["output_ids"], truth["output_ids"]
    if ours == theirs:
        return ""
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
    top = truth["meta_info"]["output_top_logprobs"][place]
    tie = place >= 0 and abs(top[0][0] - top[1][0]) < TIE
    return "" if tie else f"tokens {ours} instead of {theirs}"


def bodies(prompts: int, vocabulary: int, seed: int) -> list[Body]:
    """Distinct greedy requests of 1 to 1,500 tokens, some with a common beginning."""
    draw = random.Random(seed)
    common = [draw.randrange(4, vocabulary) for _ in range(400)]
    found = []
    for number in range(prompts):
        length = draw.randint(1, 1100)
        start = common if number % 3 == 0 else []
        prompt = start + [draw.randrange(4, vocabulary) for _ in range(length)]
        sampling = {"temperature": 0, "max_new_tokens": draw.randint(4, 24), "ignore_eos": True}
        found.append({"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, "top_logprobs_num": 2})
    return found


async def truths(session: aiohttp.ClientSession, worker: Worker, wanted: list[Body]) -> list[Body]:
    slots = asyncio.Semaphore(4)

    async def one(body: Body) -> Body:
        async with slots, session.post(f"{worker.url}/generate", json=body) as response:
            answer: Body = await response.json()
            return answer

    return list(await asyncio.gather(*(one(body) for body in wanted)))


async def leaks(session: aiohttp.ClientSession, workers: list[Worker]) -> dict[str, float]:
    """What is still held once nothing runs any more, or after a while; {} when nothing is."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        held: dict[str, float] = {}
        for worker in workers:
            async with session.get(f"{worker.url}/metrics") as response:
                for family in text_string_to_metric_families(await response.text()):
                    name = family.name.removeprefix("baton_")
                    if name in HELD and family.samples[0].value:
                        held[f"{worker.name} {name}"] = family.samples[0].value
        if not held or time.monotonic() > deadline:
            return held
        await asyncio.sleep(0.25)


async def run(args: argparse.Namespace, folder: Path, progress: Progress) -> tuple[Tally, dict[str, float], float]:
    started: list[Worker] = []
    with contextlib.ExitStack() as stack:
        stack.callback(_kill_all, started)
        bootstrap = Worker("bootstrap", ["bootstrap", "--http-port", "0"], folder)
        started.append(bootstrap)
        address = (await bootstrap.start())["grpc"]
        serve = ["serve", "--model-path", args.model_path, "--max-total-tokens", "32768"]
        divided = ["--disaggregation-bootstrap-addr", address, "--disaggregation-transfer-backend", args.backend]

        def worker(mode: str, number: int) -> Worker:
            return Worker(f"{mode}{number}", [*serve, *divided, "--disaggregation-mode", mode], folder)

        prefills = [worker("prefill", number) for number in range(2)]
        decodes = [worker("decode", number) for number in range(2)]
        whole = Worker("whole", serve, folder)
        started += [*prefills, *decodes, whole]
        await asyncio.gather(*(each.start() for each in (*prefills, *decodes, whole)))
        timeout = aiohttp.ClientTimeout(total=120)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            wanted = bodies(args.prompts, args.vocab_size, args.seed)
            answers = await truths(session, whole, wanted)
            whole.kill()
            fleet = Run(session, prefills, decodes, args.seed)
            begun = time.monotonic()
            await _load(fleet, wanted, answers, args, progress)
            seconds = time.monotonic() - begun
            return fleet.tally, await leaks(session, prefills + decodes), seconds


def _kill_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()


async def _load(fleet: Run, wanted: list[Body], answers: list[Body], args: argparse.Namespace, bar: Progress) -> None:
    """Send all requests while workers are killed; all workers are up again at the end."""
    task = bar.add_task("requests", total=args.requests)
    numbers = itertools.islice(itertools.count(), args.requests)

    async def client() -> None:
        for number in numbers:
            which = number % len(wanted)
            await fleet.ask(number, wanted[which], answers[which], args.attempts)
            bar.advance(task)

    havoc = asyncio.create_task(fleet.havoc(args.period))
    await asyncio.gather(*(client() for _ in range(args.concurrency)))
    havoc.cancel()
    await asyncio.wait([havoc])
    for worker in fleet.workers:
        if not worker.ready:
            worker.kill()
            await worker.start()


def _quantiles(values: list[float]) -> str:
    if not values:
        return "nothing measured"
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99)]
    return f"p50 {at[0]:.3f} s, p99 {at[1]:.3f} s, longest {ordered[-1]:.3f} s, of {len(ordered)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="examples/models/baton-tiny")
    parser.add_argument("--backend", choices=["mooncake", "nixl"], default="mooncake")
    parser.add_argument("--requests", type=count, default=500)
    parser.add_argument("--prompts", type=count, default=60, help="distinct requests among them")
    parser.add_argument("--concurrency", type=count, default=8)
    parser.add_argument("--period", type=float, default=3.0, help="seconds between two kills")
    parser.add_argument("--attempts", type=count, default=5)
    parser.add_argument("--vocab-size", type=count, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder, progress_bar(console) as progress:
        tally, held, seconds = asyncio.run(run(args, Path(folder), progress))
    table = Table("what", "found", title="Fault run", title_justify="left")
    table.add_row("requests", f"{args.requests} in {seconds:.0f} s, {tally.kills} kills")
    table.add_row("failed", f"{len(tally.failed)}")
    table.add_row("tried again", f"{tally.retried}")
    table.add_row("wrong", f"{len(tally.wrong)}")
    table.add_row("leaked", json.dumps(held) if held else "0 pages")
    table.add_row("kill to the client's retry or error", _quantiles(tally.client))
    table.add_row("a prefill's death to the decode leg's error", _quantiles(tally.survivor))
    console.print(table)
    for line in tally.failed + tally.wrong:
        console.print(line)
    return 1 if tally.failed or tally.wrong or held else 0


if __name__ == "__main__":
    sys.exit(main())
