"""Requests through prefill and decode workers of which one is killed every few seconds: what does a client see?

    python benchmarks/fault_run.py --model-path examples/models/baton-tiny

Starts a bootstrap server, a gateway, `--workers` prefill and as many decode workers, and an undivided worker whose
greedy answers are the truth. Then it sends 500 requests at concurrency 8 while a random worker is killed (SIGKILL,
children too) every few seconds and started again at its address: once with a client that chooses pairs itself and goes
to another pair when a leg fails, once through the gateway, whose retries the client never sees. A kill waits while only
one worker of a kind is up, so restarts bound the pace; the real one is printed.

`--fault stop` stops a worker (SIGSTOP) for longer than its lease instead, and lets it go on.

Prints what failed, what was tried again, which answers were wrong, which pages leaked, how long after a fault the
client went on, how long the survivors kept pages in quarantine, and how long requests took. Exit status 1 when an
answer was wrong, a request failed, or a page leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import signal
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
from killable import Worker

TIE = 2e-4  # greedy answers may part where the two likeliest tokens are closer than this
SETTLE_SECONDS = 30.0
SHOWN = 10  # lines of what went wrong
SAMPLE_SECONDS = 0.25  # as often as workers report
QUARANTINE = ("kv_pages_quarantined", "handoff_source_pages_quarantined")
HELD = ("kv_pages_in_use", "requests_reserved", *QUARANTINE)

Body = dict[str, Any]


class LegFailed(Exception):
    """A leg ended without its answer, at `when` by the monotonic clock."""

    def __init__(self, worker: Worker, reason: str) -> None:
        super().__init__(f"{worker.name}: {reason}")
        self.worker = worker
        self.when = time.monotonic()


@dataclass
class Tally:
    """What happened."""

    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    retried: int = 0
    faults: list[float] = field(default_factory=list)  # when, by the monotonic clock
    survivor: list[float] = field(default_factory=list)  # seconds from a prefill's death to the decode leg's error
    client: list[float] = field(default_factory=list)  # seconds from a fault to the client's or gateway's next step
    quarantine: list[float] = field(default_factory=list)  # seconds from a fault to a survivor's empty quarantine
    latency: list[float] = field(default_factory=list)  # seconds of each request, retries included
    seconds: float = 0.0
    held: dict[str, float] = field(default_factory=dict)  # pages that leaked


class Run:
    """The fleet under load, with pairs drawn among the workers that are up, or behind `gateway`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        prefills: list[Worker],
        decodes: list[Worker],
        seed: int,
        gateway: Worker | None = None,
    ) -> None:
        self._session = session
        self._prefills = prefills
        self._decodes = decodes
        self._gateway = gateway
        self._draw = random.Random(seed)
        self.tally = Tally()

    @property
    def workers(self) -> list[Worker]:
        return self._prefills + self._decodes

    async def ask(self, number: int, body: Body, truth: Body, attempts: int) -> None:
        """One request until it is answered or out of attempts."""
        reason = ""
        begun = time.monotonic()
        for attempt in range(1 if self._gateway else attempts):
            try:
                answer = await (self._leg(self._gateway, body) if self._gateway else self._attempt(body))
            except LegFailed as error:
                reason = str(error)
                self.tally.retried += attempt + 1 < attempts
                continue
            complaint = difference(answer, truth)
            if complaint:
                self.tally.wrong.append(f"request {number}: {complaint}")
            self.tally.latency.append(time.monotonic() - begun)
            return
        self.tally.failed.append(f"request {number}: {reason}")

    async def _pair(self) -> tuple[Worker, Worker]:
        while True:
            prefills = [worker for worker in self._prefills if worker.ready]
            decodes = [worker for worker in self._decodes if worker.ready]
            if prefills and decodes:
                return self._draw.choice(prefills), self._draw.choice(decodes)
            await asyncio.sleep(0.05)

    async def _attempt(self, body: Body) -> Body:
        prefill, decode = await self._pair()
        begun = time.monotonic()
        ticket = {"transfer_id": uuid.uuid4().hex, "receiver": f"127.0.0.1:{decode.port}"}
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

    async def havoc(self, period: float, stopped: float | None) -> None:
        """Every `period` seconds kill a worker and start it again, or stop it for `stopped` seconds; never the last
        one of its kind that is up. Until cancelled, along with what it began."""
        async with asyncio.TaskGroup() as mending:
            while True:
                await asyncio.sleep(period)
                kinds = [kind for kind in map(_up, (self._prefills, self._decodes)) if len(kind) > 1]
                if kinds:
                    victim = self._draw.choice(self._draw.choice(kinds))
                    self.tally.faults.append(time.monotonic())
                    mending.create_task(_restart(victim) if stopped is None else victim.pause(stopped))

    async def watch(self) -> None:
        """Note when survivors' quarantines are empty again; until cancelled."""
        since: dict[str, float] = {}
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            for worker in _up(self.workers):
                figures = await self.figures(worker)
                now = time.monotonic()
                if any(figures.get(name) for name in QUARANTINE):
                    since.setdefault(worker.name, max(self.tally.faults, default=now))
                elif worker.name in since:
                    self.tally.quarantine.append(now - since.pop(worker.name))
            for worker in self.workers:
                if not worker.ready:
                    since.pop(worker.name, None)

    async def watch_gateway(self, gateway: Worker) -> None:
        """Note how long after a fault the gateway gives up a leg, to go on elsewhere at once; until cancelled.

        Attributed to the latest fault.
        """
        seen = (await self.figures(gateway)).get("gateway_lost_legs", 0.0)
        while True:
            await asyncio.sleep(SAMPLE_SECONDS / 5)
            found = (await self.figures(gateway)).get("gateway_lost_legs", seen)
            self.tally.retried += int(found - seen)
            if found > seen and self.tally.faults:
                self.tally.client += [time.monotonic() - self.tally.faults[-1]] * int(found - seen)
            seen = found

    async def figures(self, worker: Worker) -> dict[str, float]:
        """The worker's metrics, added up over labels; {} from one that does not answer."""
        found: dict[str, float] = {}
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._session.get(f"{worker.url}/metrics", timeout=aiohttp.ClientTimeout(total=2)) as response:
                for family in text_string_to_metric_families(await response.text()):
                    values = [one.value for one in family.samples if not one.name.endswith(("_created", "_bucket"))]
                    found[family.name.removeprefix("baton_")] = sum(values)
        return found

    async def leaks(self) -> dict[str, float]:
        """What is still held once nothing runs any more, or after a while; {} when nothing is."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            held: dict[str, float] = {}
            for worker in self.workers:
                figures = await self.figures(worker)
                held |= {f"{worker.name} {name}": figures[name] for name in HELD if figures.get(name)}
                held |= {} if figures else {f"{worker.name} does not answer": 1.0}
            if not held or time.monotonic() > deadline:
                return held
            await asyncio.sleep(SAMPLE_SECONDS)


def _up(workers: list[Worker]) -> list[Worker]:
    return [worker for worker in workers if worker.ready]


async def _restart(worker: Worker) -> None:
    worker.kill()
    await worker.start()


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


async def run(args: argparse.Namespace, folder: Path, progress: Progress) -> dict[str, Tally]:
    """What happened, by the way that requests took."""
    started: list[Worker] = []
    with contextlib.ExitStack() as stack:
        stack.callback(_kill_all, started)
        bootstrap = Worker("bootstrap", ["bootstrap", "--http-port", "0"], folder)
        started.append(bootstrap)
        address = (await bootstrap.start())["grpc"]
        serve = ["serve", "--model-path", args.model_path, "--max-total-tokens", "32768", "--skip-tokenizer-init"]
        divided = ["--disaggregation-bootstrap-addr", address, "--disaggregation-transfer-backend", args.backend]

        def fleet(mode: str) -> list[Worker]:
            command = [*serve, *divided, "--disaggregation-mode", mode]
            return [Worker(f"{mode}{number}", command, folder) for number in range(args.workers)]

        prefills, decodes = fleet("prefill"), fleet("decode")
        whole = Worker("whole", serve, folder)
        gateway = Worker("gateway", ["gateway", "--bootstrap-addr", address, "--attempts", str(args.attempts)], folder)
        started += [*prefills, *decodes, whole, gateway]
        await asyncio.gather(*(each.start() for each in (*prefills, *decodes, whole, gateway)))
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120), connector=connector) as session:
            wanted = bodies(args.prompts, args.vocab_size, args.seed)
            answers = await truths(session, whole, wanted)
            whole.kill()
            tallies = {}
            for way in args.through:
                fleet_run = Run(session, prefills, decodes, args.seed, gateway if way == "gateway" else None)
                await _load(fleet_run, wanted, answers, args, progress, gateway if way == "gateway" else None)
                tallies[way] = fleet_run.tally
            return tallies


def _kill_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()


async def _load(
    run: Run, wanted: list[Body], answers: list[Body], args: argparse.Namespace, bar: Progress, gateway: Worker | None
) -> None:
    """Send all requests while workers fail; all workers are up again at the end."""
    task = bar.add_task("direct" if gateway is None else "gateway", total=args.requests)
    numbers = itertools.islice(itertools.count(), args.requests)

    async def client() -> None:
        for number in numbers:
            which = number % len(wanted)
            await run.ask(number, wanted[which], answers[which], args.attempts)
            bar.advance(task)

    begun = time.monotonic()
    watches = [asyncio.create_task(run.watch())]
    if gateway is not None:
        watches.append(asyncio.create_task(run.watch_gateway(gateway)))
    havoc = asyncio.create_task(run.havoc(args.period, args.stopped if args.fault == "stop" else None))
    await asyncio.gather(*(client() for _ in range(args.concurrency)))
    run.tally.seconds = time.monotonic() - begun
    havoc.cancel()
    await asyncio.sleep(SETTLE_SECONDS / 3)  # the last fault's quarantine is watched as well
    for watch in watches:
        watch.cancel()
    ends = await asyncio.gather(havoc, *watches, return_exceptions=True)
    faults = [end for end in ends if isinstance(end, Exception)]
    if faults:
        raise faults[0]
    for worker in run.workers:
        worker.signal(signal.SIGCONT)
        if not worker.ready and args.fault == "kill":
            await _restart(worker)
        worker.ready = True
    run.tally.held = await run.leaks()


def _quantiles(values: list[float]) -> str:
    if not values:
        return "nothing measured"
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99)]
    return f"p50 {at[0]:.3f} s, p99 {at[1]:.3f} s, longest {ordered[-1]:.3f} s, of {len(ordered)}"


def _report(tallies: dict[str, Tally], args: argparse.Namespace) -> Table:
    table = Table("what", *tallies, title=f"Fault run: {args.fault}, {args.backend}", title_justify="left")
    rows: dict[str, list[str]] = {}
    for tally in tallies.values():
        pace = tally.seconds / max(1, len(tally.faults))
        for what, found in (
            ("requests", f"{args.requests} in {tally.seconds:.0f} s"),
            ("faults", f"{len(tally.faults)}, one every {pace:.1f} s"),
            ("failed", f"{len(tally.failed)}"),
            ("tried again (gateway: legs lost)", f"{tally.retried}"),
            ("wrong", f"{len(tally.wrong)}"),
            ("leaked", json.dumps(tally.held) if tally.held else "0 pages"),
            ("fault to the retry or error", _quantiles(tally.client)),
            ("a prefill's death to the decode leg's error", _quantiles(tally.survivor)),
            ("fault to a survivor's empty quarantine", _quantiles(tally.quarantine)),
            ("time of a request", _quantiles(tally.latency)),
        ):
            rows.setdefault(what, []).append(found)
    for what, found_by_way in rows.items():
        table.add_row(what, *found_by_way)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="examples/models/baton-tiny")
    parser.add_argument("--backend", choices=["mooncake", "nixl"], default="mooncake")
    parser.add_argument("--requests", type=count, default=500)
    parser.add_argument("--prompts", type=count, default=60, help="distinct requests among them")
    parser.add_argument("--concurrency", type=count, default=8)
    parser.add_argument("--workers", type=count, default=3, help="prefill workers, and as many decode workers")
    parser.add_argument("--through", nargs="+", choices=["direct", "gateway"], default=["direct", "gateway"])
    parser.add_argument("--fault", choices=["kill", "stop"], default="kill")
    parser.add_argument("--period", type=float, default=3.0, help="seconds between two faults")
    parser.add_argument("--stopped", type=float, default=8.0, help="seconds for which a worker is stopped")
    parser.add_argument("--attempts", type=count, default=5)
    parser.add_argument("--vocab-size", type=count, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # and with it the workers
    with tempfile.TemporaryDirectory() as folder, progress_bar(console) as progress:
        tallies = asyncio.run(run(args, Path(folder), progress))
    console.print(_report(tallies, args))
    for tally in tallies.values():
        for line in (tally.failed + tally.wrong)[:SHOWN]:
            console.print(line)
    return int(any(tally.failed or tally.wrong or tally.held for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
