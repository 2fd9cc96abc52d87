"""New weights under load: what does a client see while they roll in, and what does it cost?

    python benchmarks/rollout_run.py --shape 2P2D --strategy InPlace

Runs a manifest with the parts of `baton up`, holds 50 chat streams open at all times, and changes the manifest from
baton-tiny to baton-tiny-v2, which signs its answers. Prints failed requests, answers of more than one version, cache
hits across versions, instants without a serving set, how long the change took, how far throughput fell meanwhile, and
for a change in place how long each worker stood still. Exit status 1 when any of the first four is not zero.

With `--plant` the gateway pairs workers whatever weights they serve: the run must fail.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from baton_bootstrap.client import View
from baton_operator.rollout import Worker, serving_sets
from baton_serving.bench.arguments import count
from baton_serving.gateway import cli as gateway_cli
from baton_serving.gateway import fleet as gateway_fleet
from baton_serving.local.plan import Kind, ProcessSpec
from baton_serving.local.rollout import RolloutStatus
from baton_serving.local.service import LocalService

MODELS = Path(__file__).resolve().parents[1] / "examples" / "models"
SIGNATURE = "— tiny v2"
COMMON_TOKENS = 16  # of the chat template and first words, which prompts may share
WORDS = ("amber", "bronze", "copper", "dune", "ember", "flint", "garnet", "hazel", "indigo", "jasper", "kelp", "lemon")


@dataclass
class Answer:
    """One request: who answered, by which version, and how it ended."""

    sent: float
    prompt: int
    ended: float = 0.0
    text: str = ""
    finish: str = ""
    digests: set[str] = field(default_factory=set)
    cached: int = 0
    attempts: int = 1
    error: str = ""
    tokens: list[float] = field(default_factory=list)  # when each piece of text came


@dataclass
class Tally:
    """Everything that happened, by the monotonic clock."""

    answers: list[Answer] = field(default_factory=list)
    without: list[float] = field(default_factory=list)  # instants at which no version had a serving set
    sets: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    away: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # seconds that a worker was not ready
    gaps: dict[str, float] = field(default_factory=dict)


class Watch:
    """Looks at every view of the workers that the bootstrap server gives."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._since: dict[str, float] = {}
        self.over = False

    def __call__(self, view: View) -> bool:
        now = time.monotonic()
        workers = []
        for name, entry in view.entries.items():
            role, gap = str(entry.worker.role), entry.status.progress.gap_seconds
            workers.append(Worker(name, role, entry.worker.weight_digest, entry.ready, whole=role == "both"))
            if gap:
                self._tally.gaps[name] = gap
            if not entry.ready:
                self._since.setdefault(name, now)
            elif name in self._since:
                self._tally.away[name] += now - self._since.pop(name)
        sets = serving_sets(workers)
        if not self._tally.sets or self._tally.sets[-1][1] != sets:
            self._tally.sets.append((now, sets))
        if not sets:
            self._tally.without.append(now)
        return self.over


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


def question(number: int) -> str:
    draw = random.Random(number)
    names = " ".join(draw.choices(WORDS, k=12))
    a, b = draw.randint(2, 40), draw.randint(2, 40)
    return f"{number % 10} {number // 10} {names}. What is {a} + {b}?"


async def ask(session: aiohttp.ClientSession, url: str, number: int) -> Answer:
    """One streamed chat."""
    found = Answer(time.monotonic(), number)
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": question(number)}],
        "temperature": 0,
        "max_tokens": 96,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            found.attempts = int(response.headers.get("x-baton-attempts", "1"))
            if response.status != 200:
                found.error = f"{response.status} {await response.text()}"
            else:
                await _read(response, found)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        found.error = repr(error)
    found.ended = time.monotonic()
    return found


async def _read(response: aiohttp.ClientResponse, found: Answer) -> None:
    done = False
    async for line in response.content:
        data = line.strip().removeprefix(b"data: ")
        if line.startswith(b"data: ") and data != b"[DONE]":
            event = json.loads(data)
            if "error" in event:
                found.error = event["error"]["message"]
                return
            found.digests.add(event["system_fingerprint"])
            usage = event.get("usage") or {}
            found.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", found.cached)
            for choice in event["choices"]:
                text = choice["delta"].get("content") or ""
                if text:
                    found.tokens.append(time.monotonic())
                found.text += text
                found.finish = choice["finish_reason"] or found.finish
        done |= data == b"[DONE]"
    if not done:
        found.error = "the stream ended without [DONE]"


async def load(url: str, args: argparse.Namespace, tally: Tally, over: threading.Event) -> None:
    """Keep `args.streams` requests under way until `over`; every prompt comes back now and then."""
    numbers = itertools.count()
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            while not over.is_set():
                tally.answers.append(await ask(session, url, next(numbers) % args.prompts))

        await asyncio.gather(*(client() for _ in range(args.streams)))


def judge(tally: Tally, new: str) -> dict[str, list[str]]:
    """What must not be, by kind."""
    found: dict[str, list[str]] = {"failed": [], "mixed": [], "cache": [], "without": []}
    asked: dict[tuple[int, str], float] = {}
    for answer in sorted(tally.answers, key=lambda answer: answer.sent):
        if answer.error:
            found["failed"].append(answer.error)
            continue
        signed = answer.text.rstrip().endswith(SIGNATURE)
        digest = next(iter(answer.digests), "")
        if len(answer.digests) != 1 or (answer.finish == "stop" and signed != (digest == new)):
            found["mixed"].append(f"{sorted(answer.digests)}: {answer.text!r}")
        if (answer.prompt, digest) not in asked and answer.cached > COMMON_TOKENS:
            found["cache"].append(f"prompt {answer.prompt}: {answer.cached} tokens came from another version's cache")
        asked.setdefault((answer.prompt, digest), answer.sent)
    found["without"] = [f"{at:.3f}" for at in tally.without]
    return found


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
    service = LocalService(path)
    if args.plant:
        service.plan = replace(service.plan, processes=tuple(_planted(spec) for spec in service.plan.processes))
    tally, over = Tally(), threading.Event()
    watch = Watch(tally)
    begun = time.monotonic()
    with service:
        console.print(f"ready after {time.monotonic() - begun:.0f} s")
        service.rollout.on_news = lambda news: console.print(f"{news.phase}: {news.message}", markup=False)
        old = {entry.worker.weight_digest for entry in service.view.entries.values()}
        watching = threading.Thread(target=lambda: service.wait_until(watch, 3600.0), daemon=True)
        watching.start()
        loading = threading.Thread(target=lambda: asyncio.run(load(service.url, args, tally, over)), daemon=True)
        loading.start()
        time.sleep(args.seconds)
        console.print(f"{len(tally.answers)} answers so far; now the manifest changes")
        begin = time.monotonic()
        path.write_text(manifest(MODELS / "baton-tiny-v2", args))
        status = _wait_for_the_end(service, args.limit)
        end = time.monotonic()
        time.sleep(args.seconds)
        new = {entry.worker.weight_digest for entry in service.view.entries.values()} - old
        over.set()
        watch.over = True
        loading.join(130)
    judged = judge(tally, next(iter(new), ""))
    report(args, tally, judged, (begin, end), console)
    return status.phase == "Done" and not any(judged.values())


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
        "instants without a serving set": f"{len(judged['without'])} of {len(tally.sets)} changes seen",
        "answers by version": ", ".join(f"{digest}: {number}" for digest, number in versions.items()),
        "tried again by the gateway": str(sum(answer.attempts > 1 for answer in tally.answers)),
        "seconds until all workers serve the new weights": f"{end - begin:.1f}",
        "pieces of text per second before": f"{before:.0f}",
        "in the worst second of the change": f"{worst:.0f} ({100 * worst / before:.0f}%)",
    }
    for name in sorted(tally.gaps):
        rows[f"{name} stood still for its switch"] = f"{1000 * tally.gaps[name]:.1f} ms"
    for name in sorted(tally.away):
        rows[f"{name} took no new requests"] = f"{tally.away[name]:.2f} s"
    for what, figure in rows.items():
        table.add_row(what, figure)
    console.print(table)
    for kind, complaints in judged.items():
        for complaint in complaints[:5]:
            console.print(f"{kind}: {complaint[:300]}", markup=False)


def _planted(spec: ProcessSpec) -> ProcessSpec:
    if spec.kind is not Kind.GATEWAY:
        return spec
    return replace(spec, argv=(sys.executable, __file__, "as-gateway", *spec.argv[spec.argv.index("gateway") + 1 :]))


def _as_gateway(words: list[str]) -> int:
    """Be a gateway that pairs whatever it finds."""
    gateway_fleet.fits = lambda prefill, decode: True
    parser = argparse.ArgumentParser()
    gateway_cli.add_arguments(parser)
    return gateway_cli.run(parser.parse_args(words))


def main() -> int:
    if sys.argv[1:2] == ["as-gateway"]:
        return _as_gateway(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="2P2D", help="prefill and decode workers")
    parser.add_argument("--strategy", choices=["Surge", "InPlace"], default="InPlace")
    parser.add_argument("--backend", choices=["mooncake", "nixl"], default="mooncake")
    parser.add_argument("--streams", type=count, default=50)
    parser.add_argument("--prompts", type=count, default=400, help="distinct questions")
    parser.add_argument("--seconds", type=float, default=8.0, help="of load before and after the change")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that the change may take")
    parser.add_argument("--plant", action="store_true", help="have the gateway ignore weights: the run must fail")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        passed = run(args, Path(folder), Console(width=120))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
