"""Fleets of prefill and decode workers as processes, and requests that one worker or a pair of them answers."""

from __future__ import annotations

import asyncio
import math
import random
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from support.baton_processes import BatonProcess, BatonProcesses, free_port

Body = dict[str, Any]

TOLERANCE = 2e-4  # of log-probabilities: splits and chunks alone differ by a few 1e-5
MODEL = "baton-tiny"
POOL = ("--served-model-name", MODEL, "--max-total-tokens", "24000", "--max-running-requests", "16")
VOCABULARY = 1024  # of baton-tiny
PATIENCE = 90.0  # seconds for one answer on a loaded machine


@dataclass(frozen=True)
class Shape:
    """How many workers of each kind, their tensor parallelism, the transfer backend, and what they listen on."""

    backend: str = "mooncake"
    prefills: int = 1
    decodes: int = 1
    prefill_tp: int = 1
    decode_tp: int = 1
    verify: bool = False
    host: str = "127.0.0.1"


@dataclass
class Fleet:
    """`whole` is the undivided worker to compare with, where there is one."""

    processes: BatonProcesses
    model: Path
    shape: Shape
    bootstrap: BatonProcess
    prefills: list[BatonProcess]
    decodes: list[BatonProcess]
    whole: BatonProcess | None = None

    @property
    def workers(self) -> list[BatonProcess]:
        return [*self.prefills, *self.decodes]

    def revive(self) -> None:
        """Start every worker that has died anew, at the address it had."""
        for mode, workers in (("prefill", self.prefills), ("decode", self.decodes)):
            for number, worker in enumerate(workers):
                if worker.popen.poll() is not None:
                    port = int(worker.key.rpartition(":")[2])
                    workers[number] = self._worker(mode, worker.name, port)
        for worker in self.workers:
            worker.wait_announced()

    def _worker(self, mode: str, name: str, port: int = 0) -> BatonProcess:
        tp = self.shape.prefill_tp if mode == "prefill" else self.shape.decode_tp
        options = disaggregated(mode, self.bootstrap, self.shape.backend, tp, self.shape.verify)
        options += ["--host", self.shape.host]
        return self.processes.worker(name, self.model, *options, port=port)

    def start(self) -> None:
        """Start all workers of the shape."""
        shape = self.shape
        self.prefills += [self._worker("prefill", f"prefill{i}") for i in range(shape.prefills)]
        self.decodes += [self._worker("decode", f"decode{i}") for i in range(shape.decodes)]
        for worker in self.workers:
            worker.wait_announced()


def disaggregated(mode: str, bootstrap: BatonProcess, backend: str, tp: int = 1, verify: bool = False) -> list[str]:
    """The options of a prefill or decode worker."""
    words = ["--disaggregation-mode", mode, "--disaggregation-transfer-backend", backend, "--tp-size", str(tp)]
    words += ["--disaggregation-bootstrap-addr", str(bootstrap.facts["grpc"]), *POOL]
    return words + ["--disaggregation-verify"] * verify


def start_fleet(processes: BatonProcesses, model: Path, shape: Shape, whole: str = "null") -> Fleet:
    """All workers of `shape`, and one undivided worker of mode `whole` to compare them with ("": none).

    A decode worker serves whole whatever comes without a ticket, and requests can move to it.
    """
    bootstrap = processes.bootstrap(free_port())
    options = disaggregated("decode", bootstrap, shape.backend) if whole == "decode" else POOL
    undivided = processes.worker("whole", model, *options) if whole else None
    fleet = Fleet(processes, model, shape, bootstrap, [], [], undivided)
    fleet.start()
    if undivided is not None:
        undivided.wait_announced()
    return fleet


# Requests


@dataclass
class Case:
    """A `/generate` body, and what its name says about it. Bodies of later cases may extend prompts of earlier ones."""

    name: str
    body: Body


def mixed_cases(count: int, seed: int, longest: int = 1900) -> list[Case]:
    """Prompts of 1 to `longest` tokens; some begin like an earlier one or repeat it; every kind of option occurs."""
    draw = random.Random(seed)
    prompts: list[list[int]] = []
    cases = []
    for number in range(count):
        prompt, origin = _prompt(draw, prompts, longest if number % 10 == 9 else 0, longest)
        prompts.append(prompt)
        kind = _KINDS[number % len(_KINDS)]
        body: Body = {"input_ids": prompt, "return_logprob": True, "top_logprobs_num": 2, "sampling_params": {}}
        body["sampling_params"] = {"max_new_tokens": draw.randint(1, 12), "temperature": 0, **_sampling(kind, draw)}
        if kind == "prompt logprobs":
            body["logprob_start_len"] = draw.choice([0, len(prompt) // 2])
        cases.append(Case(f"{number}: {kind}, {origin} prompt of {len(prompt)}", body))
    return cases


_KINDS = ("greedy", "prompt logprobs", "n", "stop text", "seeded", "stop token", "penalties", "one token", "ignore_eos")


def _prompt(draw: random.Random, earlier: Sequence[list[int]], exactly: int, longest: int) -> tuple[list[int], str]:
    if earlier and not exactly and draw.random() < 0.4:
        base = draw.choice(earlier)
        cut = draw.choice([len(base), draw.randint(1, len(base))])
        more = [draw.randrange(4, VOCABULARY) for _ in range(draw.randint(0, 40))]
        return [*base[:cut], *more][:longest], "known"
    length = exactly or round(math.exp(draw.uniform(0, math.log(longest))))
    return [draw.randrange(4, VOCABULARY) for _ in range(length)], "new"


def _sampling(kind: str, draw: random.Random) -> Body:
    seeded: Body = {"temperature": draw.uniform(0.3, 1.0), "sampling_seed": draw.randrange(1 << 31), "top_p": 0.95}
    match kind:
        case "n":
            return {"n": 2, **seeded}
        case "stop text":
            return {"max_new_tokens": 24, "stop": [" t", "e"]}
        case "seeded":
            return {**seeded, "top_k": 50, "min_p": 0.01}
        case "stop token":
            return {"max_new_tokens": 24, "stop_token_ids": [draw.randrange(4, VOCABULARY) for _ in range(200)]}
        case "penalties":
            return {"frequency_penalty": 0.7, "presence_penalty": 0.4, "repetition_penalty": 1.2, "max_new_tokens": 16}
        case "one token":
            return {"max_new_tokens": 1}
        case "ignore_eos":
            return {"max_new_tokens": 20, "ignore_eos": True}
    return {}


@dataclass
class Answer:
    """What `/generate` said: one dict per choice, or the error."""

    status: int
    choices: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        return [choice["meta_info"]["finish_reason"]["type"] for choice in self.choices]

    @property
    def tokens(self) -> list[list[int]]:
        return [choice["output_ids"] for choice in self.choices]


async def ask(client: httpx.AsyncClient, worker: BatonProcess, body: Body) -> Answer:
    """One `/generate` call, not streamed."""
    response = await client.post(f"{worker.url}/generate", json=body, timeout=PATIENCE)
    content = response.json()
    if response.status_code != 200:
        return Answer(response.status_code, error=content["error"])
    return Answer(200, content if isinstance(content, list) else [content])


def leg_bodies(body: Body, prefill: BatonProcess, transfer_id: str = "", attempt: int = 0) -> tuple[Body, Body]:
    """The same request for both legs: the prefill worker's and the decode worker's."""
    ticket: Body = {"transfer_id": transfer_id or uuid.uuid4().hex, "attempt": attempt}
    return {**body, "baton_handoff": ticket}, {**body, "baton_handoff": {**ticket, "peer": prefill.key}}


async def ask_pair(
    client: httpx.AsyncClient, prefill: BatonProcess, decode: BatonProcess, body: Body
) -> tuple[Answer, Answer]:
    """Both legs of one request at the same moment; the prefill worker's answer comes first."""
    first, second = leg_bodies(body, prefill)
    answers = await asyncio.gather(ask(client, prefill, first), ask(client, decode, second))
    return answers[0], answers[1]


async def ask_whole(worker: BatonProcess, cases: Iterable[Case], at_once: int = 4) -> list[Answer]:
    """The answers of an undivided worker, in order of the cases."""
    slots = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient() as client:

        async def one(case: Case) -> Answer:
            async with slots:
                return await ask(client, worker, case.body)

        return list(await asyncio.gather(*(one(case) for case in cases)))


async def ask_divided(fleet: Fleet, cases: Iterable[Case], at_once: int = 4) -> list[Answer]:
    """The decode workers' answers; pairs are taken in turn, so that every link is used."""
    slots = asyncio.Semaphore(at_once)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient())

        async def one(number: int, case: Case) -> Answer:
            prefill = fleet.prefills[number % len(fleet.prefills)]
            decode = fleet.decodes[number % len(fleet.decodes)]
            async with slots:
                first, second = await ask_pair(client, prefill, decode, case.body)
            assert first.status == 200, f"{case.name}: {first.error}"
            assert set(first.kinds) == {"handoff"}, case.name
            return second

        return list(await asyncio.gather(*(one(number, case) for number, case in enumerate(cases))))


# Comparisons


def difference(case: Case, whole: Answer, divided: Answer) -> str:
    """How the answers of a divided fleet differ from an undivided worker's; nothing when they agree.

    After a position where the two likeliest tokens were closer than the tolerance, greedy answers may part.
    """
    if (whole.status, divided.status) != (200, 200):
        return f"{case.name}: status {divided.status} {divided.error}, undivided {whole.status} {whole.error}"
    if len(whole.choices) != len(divided.choices):
        return f"{case.name}: {len(divided.choices)} choices, undivided {len(whole.choices)}"
    for ours, theirs in zip(divided.choices, whole.choices, strict=True):
        complaint = _choice_difference(ours, theirs)
        if complaint:
            return f"{case.name}: {complaint}"
    return ""


def _choice_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    mine, wanted = ours["meta_info"], theirs["meta_info"]
    if "input_token_logprobs" in wanted:
        complaint = _logprob_difference(mine["input_token_logprobs"], wanted["input_token_logprobs"], "prompt")
        if complaint:
            return complaint
    same = _common(ours["output_ids"], theirs["output_ids"])
    logprobs = mine["output_token_logprobs"][:same], wanted["output_token_logprobs"][:same]
    complaint = _logprob_difference(*logprobs, "output")
    if complaint:
        return complaint
    if ours["output_ids"] != theirs["output_ids"]:
        top = wanted["output_top_logprobs"]
        if same < len(top) and abs(top[same][0][0] - top[same][1][0]) < TOLERANCE:
            return ""  # a tie
        return f"tokens {ours['output_ids']}, undivided {theirs['output_ids']}"
    if ours["text"] != theirs["text"] or mine["finish_reason"] != wanted["finish_reason"]:
        return f"{ours['text']!r} {mine['finish_reason']}, undivided {theirs['text']!r} {wanted['finish_reason']}"
    return ""


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _logprob_difference(ours: Sequence[Sequence[Any]], theirs: Sequence[Sequence[Any]], where: str) -> str:
    if [entry[1] for entry in ours] != [entry[1] for entry in theirs]:
        return f"{where} logprobs are of {[entry[1] for entry in ours]}, undivided {[entry[1] for entry in theirs]}"
    for position, (mine, wanted) in enumerate(zip(ours, theirs, strict=True)):
        if mine[0] is None or wanted[0] is None:
            if mine[0] is not wanted[0]:
                return f"{where} logprob {position} is {mine[0]}, undivided {wanted[0]}"
        elif abs(mine[0] - wanted[0]) > TOLERANCE:
            return f"{where} logprob {position} is {mine[0]}, undivided {wanted[0]}"
    return ""


async def settled(*workers: BatonProcess, seconds: float = 20.0) -> None:
    """Wait until no page of the workers is in use or in quarantine; AssertionError after `seconds`."""
    held: dict[str, dict[str, float]] = {}

    def nothing_held() -> bool:
        held.update({worker.name: _held(worker) for worker in workers})
        return not any(any(figures.values()) for figures in held.values())

    try:
        await until(nothing_held, "pages to be free", seconds)
    except TimeoutError:
        raise AssertionError(f"still held after {seconds:g} s: {held}") from None


async def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Look a few times a second, as often as workers report, until it holds; TimeoutError after `seconds`."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    while clock() < deadline:
        if condition():
            return
        await asyncio.sleep(0.05)
    raise TimeoutError(f"waited {seconds:g} s in vain for {what}")


def _held(worker: BatonProcess) -> dict[str, float]:
    metrics = worker.metrics()
    names = ("kv_pages_in_use", "kv_pages_quarantined", "handoff_source_pages_quarantined", "handoff_waiting")
    return {name: metrics.get(f"baton_{name}", 0.0) for name in names}


# Faults


@dataclass
class Legs:
    """Both legs of one request under way."""

    prefill: asyncio.Task[Answer]
    decode: asyncio.Task[Answer]


def send_pair(client: httpx.AsyncClient, fleet: Fleet, body: Body, transfer_id: str = "") -> Legs:
    """Begin a request on the fleet's first pair."""
    prefill, decode = fleet.prefills[0], fleet.decodes[0]
    first, second = leg_bodies(body, prefill, transfer_id)
    return Legs(
        asyncio.create_task(ask(client, prefill, first), name="prefill leg"),
        asyncio.create_task(ask(client, decode, second), name="decode leg"),
    )


async def ended(task: asyncio.Task[Answer]) -> Answer:
    """The answer of a leg; status 0 when its worker died under it. Raises TimeoutError for a leg that hangs."""
    try:
        return await asyncio.wait_for(task, PATIENCE)
    except httpx.HTTPError as error:
        return Answer(0, error={"message": repr(error)})


async def reached(worker: BatonProcess, metric: str, at_least: float = 1.0) -> None:
    """Wait until a figure of the worker is that high."""
    await until(lambda: worker.metrics().get(f"baton_{metric}", 0.0) >= at_least, f"{worker.name}: {metric}")


def fresh_prompt(tokens: int, draw: random.Random) -> list[int]:
    """A prompt that no cache knows."""
    return [draw.randrange(4, VOCABULARY) for _ in range(tokens)]


def greedy(prompt: list[int], tokens: int = 8) -> Body:
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    return {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, "top_logprobs_num": 2}


async def next_is_right(client: httpx.AsyncClient, fleet: Fleet, whole: BatonProcess | None) -> None:
    """One more request through the fleet gives the undivided worker's answer, and nothing is held afterwards."""
    assert whole is not None
    case = Case("the next request", greedy(fresh_prompt(300, random.Random())))
    wanted = await ask(client, whole, case.body)
    first, second = await ask_pair(client, fleet.prefills[0], fleet.decodes[0], case.body)
    assert (first.status, first.error) == (200, {})
    assert difference(case, wanted, second) == ""
    await settled(*fleet.workers)
