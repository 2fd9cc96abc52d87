"""Streams through two gateways while workers are killed, stopped and replaced, and both gateways drained in turn.

    python benchmarks/chaos_run.py --requests 2000

Starts a bootstrap server, two gateways, `--workers` prefill and as many decode workers, and an undivided worker, whose
streams are the truth. Every `--period` seconds one worker, never the last of its kind, is killed (SIGKILL, children
too) and started again, stopped for `--stopped` seconds (SIGSTOP), or told to end (SIGTERM) and replaced. After a third
of the requests the first gateway is told to end and started again, after two thirds the second: clients that find its
port closed go to the other.

Prints what failed, what differs from the undisturbed stream, tokens that came twice or never, what was tried again,
what went on at another worker and how, and how long that took: from the gateway's noticing to the next bytes, as a
ratio to the usual time to first token of the same request. Beside it stand the same ratio of undisturbed streams, which
is what the load alone makes of it, and the first over the second at about the same time, when other streams go on and
workers start, too. Requests whose undivided streams already depend on what else the worker computes (ties to
the last bit) are left out. Exit status 1 when anything failed, was wrong, or leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from baton_serving.bench.arguments import count, positive, progress_bar
from chaos_times import Wait, compare, quantiles, slow_table, stage_table, wait_of
from fault_run import SHOWN, Run
from killable import Worker
from streams import Asked, Stream, asked, difference, read

FAULTS = ("kill", "stop", "end")
LIMIT_SECONDS = 150.0  # of one request
GRACE_SECONDS = 35.0  # of a gateway that is told to end, and a little more
TELL_EVERY = 100  # requests, where there is no bar to look at
PATIENCE = 15.0  # seconds that a request waits for a worker
VIEW_SECONDS = 60.0  # until a worker that came back must be known

Facts = dict[str, Any]


@dataclass
class Tally:
    """What happened."""

    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    duplicated: int = 0
    missing: int = 0
    turned_away: Counter[str] = field(default_factory=Counter)  # from a gateway that ends, before a byte of a reply
    retried: int = 0
    migrated: int = 0  # as the gateways' logs say
    moved: int = 0  # with their pages
    computed: int = 0  # anew, at another worker
    again: int = 0  # times that the other worker, too, was lost before it spoke
    unexplained: int = 0  # streams of a gateway that was gone before it could be asked
    by_kind: Counter[str] = field(default_factory=Counter)  # of request, of streams that went on elsewhere
    faults: Counter[str] = field(default_factory=Counter)
    drains: list[float] = field(default_factory=list)  # seconds that a gateway took to end
    first: list[Wait] = field(default_factory=list)  # of undisturbed streams for their first bytes
    resumed: list[Wait] = field(default_factory=list)  # of others, from the gateway's noticing to the next bytes
    asked: int = 0
    left_out: int = 0  # of the distinct requests
    begun: float = 0.0
    seconds: float = 0.0

    @property
    def progress(self) -> str:
        """In a few words, while it goes on."""
        bad = len(self.failed) + len(self.wrong) + self.duplicated + self.missing
        return f"requests ({sum(self.faults.values())} faults, {self.computed + self.moved} went on, {bad} bad)"

    @property
    def good(self) -> bool:
        return not (self.failed or self.wrong or self.duplicated or self.missing)


@dataclass
class Strike:
    """From when to when (unix time) the worker at `url` was not itself."""

    url: str
    begun: float
    ended: float = math.inf


class Chaos:
    """The fleet under load."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        gateways: list[Worker],
        kinds: Sequence[list[Worker]],
        seed: int,
        tally: Tally,
    ) -> None:
        """`kinds`: prefill and decode workers."""
        self._session = session
        self._gateways = gateways
        self._kinds = kinds
        self._draw = random.Random(seed)
        self._strikes: list[Strike] = []
        self.tally = tally

    # Clients

    async def ask(self, number: int, which: int, wanted: Asked, truth: Stream) -> None:
        """One stream, at the gateway whose turn it is or else at the other."""
        turn = number % len(self._gateways)
        reason = ""
        for gateway in (*self._gateways[turn:], *self._gateways[:turn]):
            try:
                await self._ask(gateway, number, which, wanted, truth)
            except (aiohttp.ClientError, OSError) as error:
                reason = repr(error)
                if gateway.ready:
                    break
                self.tally.turned_away[type(error).__name__] += 1
            else:
                return
        self.tally.failed.append(f"request {number}: no gateway took it: {reason}")

    async def _ask(self, gateway: Worker, number: int, which: int, wanted: Asked, truth: Stream) -> None:
        """Raises when not even the head of a reply came."""
        tally, url = self.tally, f"{gateway.url}{wanted.path}"
        async with self._session.post(url, json=wanted.body) as response:
            raw = b""
            try:
                async for data in response.content.iter_any():
                    raw += data
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                tally.failed.append(f"request {number} ({wanted.kind}): broken off after {len(raw)} bytes: {error!r}")
                return
        if response.status != 200:
            tally.failed.append(f"request {number} ({wanted.kind}): {response.status} {raw[:300]!r}")
            return
        ours = read(raw)
        self._judge(f"request {number} ({wanted.kind}, {response.headers['x-request-id']})", ours, truth)
        tally.retried += int(response.headers["x-baton-attempts"]) - 1
        facts = await self._explain(gateway, response.headers["x-request-id"])
        if facts is None:
            tally.unexplained += 1
        else:
            self._note_times(which, wanted.kind, facts, ours)

    def _judge(self, name: str, ours: Stream, truth: Stream) -> None:
        self.tally.duplicated += ours.duplicated
        self.tally.missing += ours.missing
        if ours.error or not ours.done:
            self.tally.failed.append(f"{name}: {ours.error or 'it ended without [DONE]'}")
            return
        complaint = difference(ours, truth)
        if complaint:
            self.tally.wrong.append(f"{name}: {complaint}")

    async def _explain(self, gateway: Worker, request_id: str) -> Facts | None:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with self._session.get(f"{gateway.url}/v1/baton/explain/{request_id}") as response:
                if response.status == 200:
                    facts: Facts = await response.json()
                    return facts
        return None

    def _note_times(self, which: int, kind: str, facts: Facts, stream: Stream) -> None:
        """What the gateway says of a stream's stages, in seconds since it came, and the workers of theirs."""
        tally, noticed, why, came = self.tally, 0.0, "", facts["received"]
        first, sent = facts["first_byte_after"], [one["after"] for one in facts["attempts"]]
        timings = [choice.timings for choice in stream.choices.values()]
        begun = came + sent[0]
        if len(sent) == 1 and not self._touched(facts["attempts"][0], begun, came + first):
            tally.first.append(wait_of(which, begun, begun, came + first, timings))
        for stage in facts["stages"]:
            if stage["after"] < first:
                continue
            if stage["what"] == "lost":
                tally.again += noticed > 0
                noticed, why = stage["after"], stage["detail"]
            elif stage["what"] == "goes on":
                tally.computed += 1
                tally.by_kind[kind] += 1
                latest = max((at for at in sent if at <= stage["after"]), default=noticed)
                ended = came + stage["after"]
                about = f"{kind}; {_kept(facts)}; {why}"
                tally.resumed.append(wait_of(which, came + noticed, came + latest, ended, timings, about))
                noticed = 0.0
            elif stage["what"] == "moved":
                tally.moved += 1
                tally.by_kind[kind] += 1

    def _touched(self, attempt: Facts, begun: float, ended: float) -> bool:
        """Whether one of its workers was struck meanwhile, though the attempt went well in the end."""
        urls = {attempt[leg]["url"] for leg in ("prefill", "decode") if leg in attempt}
        return any(one.url in urls and one.begun < ended and one.ended > begun for one in self._strikes)

    # Faults

    async def havoc(self, faults: Sequence[str], period: float, stopped: float, over: asyncio.Event) -> None:
        """Until `over`; returns when every worker is up again."""
        async with asyncio.TaskGroup() as mending:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), period)
                    return
                up = [[one for one in kind if one.ready] for kind in self._kinds]
                victims = [kind for kind in up if len(kind) > 1]
                if victims:
                    victim, fault = self._draw.choice(self._draw.choice(victims)), self._draw.choice(faults)
                    victim.ready = False
                    self.tally.faults[fault] += 1
                    mending.create_task(self._strike(victim, fault, stopped))

    async def _strike(self, victim: Worker, fault: str, stopped: float) -> None:
        before, strike = await self._incarnation(victim), Strike(victim.url, time.time())
        self._strikes.append(strike)
        if fault == "stop":
            await victim.pause(stopped)
        else:
            if fault == "kill":
                victim.kill()
            elif await victim.end():
                self.tally.failed.append(f"{victim.name} ended badly after SIGTERM: {victim.tail()}")
            await victim.start()
        await self.known(victim, before if fault != "stop" else "")
        strike.ended = time.time()

    async def known(self, worker: Worker, before: str = "") -> None:
        """It is nobody's victim until all gateways know that it is back, and not as the start `before`."""
        worker.ready = False
        try:
            async with asyncio.timeout(VIEW_SECONDS):
                while True:
                    await asyncio.sleep(0.1)
                    if await self._incarnation(worker) not in ("", before):
                        break
        except TimeoutError:
            self.tally.failed.append(f"{worker.name} was not known to be back after {VIEW_SECONDS:g} s")
        else:
            worker.ready = True

    async def _incarnation(self, worker: Worker) -> str:
        """Which start of it every gateway that is up would use; "" when one would not."""
        found = set()
        for gateway in self._gateways:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with self._session.get(f"{gateway.url}/v1/baton/workers") as response:
                    ours = [one for one in await response.json() if one["url"] == worker.url]
                    usable = [one for one in ours if one["state"] == "ready" and one["responsive"]]
                    found.add(usable[0]["incarnation"] if len(ours) == len(usable) == 1 else "")
        return found.pop() if len(found) == 1 else ""

    async def drain(self, gateway: Worker) -> None:
        """Tell a gateway to end, which it must do well and in time, and start it again."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                status = await gateway.end()
        except TimeoutError:
            self.tally.failed.append(f"{gateway.name} did not end within {GRACE_SECONDS:g} s of SIGTERM")
            gateway.kill()
        else:
            self.tally.drains.append(time.monotonic() - begun)
            if status:
                self.tally.failed.append(f"{gateway.name} ended with {status} after SIGTERM: {gateway.tail()}")
        await gateway.start()

    async def load(self, wanted: list[Asked], truths: list[Stream], args: argparse.Namespace, bar: Progress) -> None:
        """Send all requests, `rate` a second at random times while fewer than `concurrency` are open, and as long as
        there is time; gateways end and start in between."""
        requests, tally = args.requests, self.tally
        task = bar.add_task("requests", total=requests)
        share = requests // (len(self._gateways) + 1)
        drains = {share * turn: gateway for turn, gateway in enumerate(self._gateways, 1)}
        slots = asyncio.Semaphore(args.concurrency)

        async def one(number: int) -> None:
            which = number % len(wanted)
            try:
                await self.ask(number, which, wanted[which], truths[which])
            finally:
                slots.release()
            bar.update(task, advance=1, description=tally.progress)
            tally.asked += 1
            tally.seconds = time.monotonic() - tally.begun
            if not bar.console.is_terminal and tally.asked % TELL_EVERY == 0:
                bar.console.print(f"{tally.asked} of {requests} {tally.progress}, {tally.seconds:.0f} s", markup=False)

        async with asyncio.TaskGroup() as tasks:
            due = time.monotonic()
            for number in range(requests):
                due += self._draw.expovariate(args.rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await slots.acquire()
                if time.monotonic() - tally.begun > args.seconds:
                    tally.failed.append(f"only {number} of {requests} requests were sent within {args.seconds:g} s")
                    break
                if number in drains:
                    tasks.create_task(self.drain(drains[number]))
                tasks.create_task(one(number))


def _kept(facts: Facts) -> str:
    """What became of the prefill worker of a stream that went on: its cache holds the prompt."""
    prefills = [one["prefill"]["incarnation"] for one in facts["attempts"] if "prefill" in one]
    return "same prefill" if prefills[-1:] == prefills[:1] else "other prefill"


async def undisturbed(
    session: aiohttp.ClientSession, url: str, wanted: list[Asked], at_once: int, progress: Progress, what: str
) -> list[Stream]:
    """The streams of one worker that serves whole."""
    slots = asyncio.Semaphore(at_once)
    task = progress.add_task(what, total=len(wanted))

    async def one(request: Asked) -> Stream:
        async with slots, session.post(f"{url}{request.path}", json=request.body) as response:
            raw = await response.read()
        if response.status != 200:
            raise SystemExit(f"{request.kind}: {response.status} {raw.decode()}")
        progress.advance(task)
        return read(raw)

    return list(await asyncio.gather(*(one(request) for request in wanted)))


async def steady(
    session: aiohttp.ClientSession, url: str, wanted: list[Asked], progress: Progress
) -> tuple[list[Asked], list[Stream]]:
    """The requests whose streams are the same alone and in a crowd, and these streams."""
    crowded = await undisturbed(session, url, wanted, 12, progress, "truth, in a crowd")
    alone = await undisturbed(session, url, wanted, 1, progress, "truth, one by one")
    kept = [number for number, stream in enumerate(alone) if not difference(crowded[number], stream)]
    if len(kept) < len(wanted) / 2:
        raise SystemExit(
            f"only {len(kept)} of {len(wanted)} requests have steady streams; the first differs by "
            f"{next(filter(None, map(difference, crowded, alone)))}"
        )
    return [wanted[number] for number in kept], [alone[number] for number in kept]


async def run(args: argparse.Namespace, folder: Path, progress: Progress, tally: Tally) -> None:
    """Into `tally` goes what happens, as it happens: it is worth reading when the run is cut short, too."""
    with contextlib.ExitStack() as stack:

        def worker(name: str, *words: str) -> Worker:
            made = Worker(name, list(words), folder)
            stack.callback(made.kill)
            made.yields = os.geteuid() == 0  # nobody else may take niceness back
            return made

        bootstrap = worker("bootstrap", "bootstrap", "--http-port", "0")
        address = (await bootstrap.start())["grpc"]
        serve = ["serve", "--model-path", args.model_path, "--served-model-name", "tiny", "--max-total-tokens", "32768"]
        divided = ["--disaggregation-bootstrap-addr", address, "--disaggregation-transfer-backend", args.backend]
        prefills, decodes = (
            [worker(f"{mode}{one}", *serve, *divided, "--disaggregation-mode", mode) for one in range(args.workers)]
            for mode in ("prefill", "decode")
        )
        logs = [folder / f"access{one}" for one in range(2)]
        # Where everybody shares two cores, all workers of a kind may stand still at once for a moment.
        front = ["gateway", "--bootstrap-addr", address, "--worker-wait", f"{PATIENCE:g}", "--access-log"]
        gateways = [worker(f"gateway{one}", *front, str(log)) for one, log in enumerate(logs)]
        whole = worker("whole", *serve)
        await whole.start()
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=LIMIT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            draw = random.Random(args.seed)
            drawn = [asked(number, draw) for number in range(args.prompts)]
            wanted, truths = await steady(session, whole.url, drawn, progress)
            whole.kill()
            await asyncio.gather(*(each.start() for each in (*prefills, *decodes, *gateways)))
            chaos = Chaos(session, gateways, (prefills, decodes), args.seed, tally)
            await asyncio.gather(*(chaos.known(each) for each in (*prefills, *decodes)))
            tally.left_out, tally.begun, over = len(drawn) - len(wanted), time.monotonic(), asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(chaos.havoc(args.faults, args.period, args.stopped, over))
                await chaos.load(wanted, truths, args, progress)
                over.set()
            held = await Run(session, prefills, decodes, args.seed).leaks()
            tally.failed += [f"{what} at the end: {figure:g}" for what, figure in held.items()]
        await asyncio.gather(*(gateway.end() for gateway in gateways))
        ended = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        tally.migrated = sum(one["migrations"] for one in ended)


def report(tally: Tally, args: argparse.Namespace) -> Table:
    compared = compare(tally.resumed, tally.first)
    table = Table("what", "found", title=f"Chaos: {args.workers}P{args.workers}D, {args.backend}", title_justify="left")
    for what, found in (
        (
            "requests",
            f"{tally.asked} in {tally.seconds:.0f} s; {tally.left_out} of {args.prompts} distinct ones left out",
        ),
        ("faults", ", ".join(f"{number} × {fault}" for fault, number in sorted(tally.faults.items()))),
        ("failed", str(len(tally.failed))),
        ("wrong", str(len(tally.wrong))),
        ("tokens duplicated, missing", f"{tally.duplicated}, {tally.missing}"),
        ("tried again before the first byte", str(tally.retried)),
        ("went on at another worker", f"{tally.migrated}, of {tally.unexplained} streams it is not known how"),
        ("… computed again", f"{tally.computed}, of which {tally.again} lost the next worker, too, before it spoke"),
        ("… with their pages", str(tally.moved)),
        ("… by kind", ", ".join(f"{number} × {kind}" for kind, number in sorted(tally.by_kind.items()))),
        ("gateways' ends after SIGTERM", ", ".join(f"{seconds:.1f} s" for seconds in tally.drains)),
        ("turned away by one that ends", ", ".join(f"{n} × {name}" for name, n in tally.turned_away.items()) or "0"),
        ("noticed to next bytes, seconds", quantiles([wait.seconds for wait in tally.resumed])),
        ("… / usual first token of the request", quantiles(compared.resumed)),
        ("undisturbed first token / the same", quantiles(compared.undisturbed)),
        ("the former / the latter at the time", quantiles(compared.at_the_time)),
        ("noticed to next bytes / prefill of its own", quantiles(compared.own_prefill)),
    ):
        table.add_row(what, found)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="examples/models/baton-tiny")
    parser.add_argument("--backend", choices=["mooncake", "nixl"], default="mooncake")
    parser.add_argument("--requests", type=count, default=2000)
    parser.add_argument("--prompts", type=count, default=70, help="distinct requests among them")
    parser.add_argument("--rate", type=positive, default=4.0, help="requests a second, at random times")
    parser.add_argument("--concurrency", type=count, default=12, help="requests that may be open at once")
    parser.add_argument("--seconds", type=positive, default=3000.0, help="after which no more requests are sent")
    parser.add_argument("--workers", type=count, default=2, help="prefill workers, and as many decode workers")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--period", type=positive, default=5.0, help="seconds between two faults")
    parser.add_argument("--stopped", type=positive, default=6.0, help="seconds for which a worker is stopped")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    console = Console(width=120)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # and with it the workers
    tally = Tally()
    try:
        with tempfile.TemporaryDirectory() as folder, progress_bar(console) as progress:
            asyncio.run(run(args, Path(folder), progress, tally))
    finally:
        for line in (tally.failed + tally.wrong)[:SHOWN]:
            console.print(line[:1500], markup=False)
        console.print(report(tally, args))
        console.print(stage_table(tally.resumed, tally.first))
        console.print(slow_table(tally.resumed, tally.first))
    return 0 if tally.good else 1


if __name__ == "__main__":
    sys.exit(main())
