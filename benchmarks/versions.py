"""What clients and workers see while new weights roll in, written down and judged.

`Recorder` writes down every view of the workers that the bootstrap server gives, `ask` one answer with the workers that
gave it, by the gateway's own record. `judge` says what must not be: a failed request; an answer of two versions; KV of
another version found in a cache; a prefill and a decode worker of different weights asked together; an instant without
a serving set.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp

from baton_bootstrap.client import View, WatchClient
from baton_operator.rollout import Worker, serving_sets
from streams import TOLERANCE

SIGNATURE = "— tiny v2"
COMMON_TOKENS = 16  # of the chat template and first words, which prompts may share
WORDS = ("amber", "bronze", "copper", "dune", "ember", "flint", "garnet", "hazel", "indigo", "jasper", "kelp", "lemon")


@dataclass(frozen=True)
class Attempt:
    """The incarnations that a request was sent to together; without `prefill`, to one that served it whole."""

    decode: str
    prefill: str = ""


@dataclass
class Answer:
    """One request: who answered, by which version, and how it ended. `attempts` is None where nobody could be asked."""

    sent: float
    prompt: int
    ended: float = 0.0
    text: str = ""
    finish: str = ""
    digests: set[str] = field(default_factory=set)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0
    attempts: Sequence[Attempt] | None = None
    error: str = ""
    tokens: list[float] = field(default_factory=list)  # when each piece of text came


@dataclass
class Tally:
    """Everything that happened, by the monotonic clock. `weights` are by incarnation, as workers registered."""

    answers: list[Answer] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    views: int = 0
    without: list[float] = field(default_factory=list)  # instants at which no version had a serving set
    sets: list[tuple[float, dict[str, int]]] = field(default_factory=list)  # every change of the serving sets
    away: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # seconds that a worker was not ready
    gaps: dict[str, float] = field(default_factory=dict)  # seconds that no step could run, by worker
    _since: dict[str, float | None] = field(default_factory=dict)  # since when a worker that was ready is not

    def see(self, view: View) -> None:
        """Take down one view of the workers."""
        now, workers = time.monotonic(), []
        self.views += 1
        for name, entry in view.entries.items():
            worker, role = entry.worker, str(entry.worker.role)
            self.weights[worker.incarnation] = worker.weight_digest
            workers.append(Worker(name, role, worker.weight_digest, entry.ready, whole=role == "both"))
            if entry.status.progress.gap_seconds:
                self.gaps[name] = entry.status.progress.gap_seconds
        self._see_readiness({worker.id: worker.ready for worker in workers}, now)
        sets = serving_sets(workers)
        if not self.sets or self.sets[-1][1] != sets:
            self.sets.append((now, sets))
        if not sets:
            self.without.append(now)

    def _see_readiness(self, ready: dict[str, bool], now: float) -> None:
        for name, is_ready in ready.items():
            since = self._since.get(name)
            if is_ready and since is not None:
                self.away[name] += now - since
            if is_ready or (name in self._since and since is None):
                self._since[name] = None if is_ready else now


class Recorder(WatchClient):
    """Follows bootstrap servers and takes down each view in turn: none is passed over when several come at once."""

    def __init__(self, addresses: Sequence[str], tally: Tally) -> None:
        self._tally = tally
        self._view = View()
        super().__init__(addresses)

    @property
    def view(self) -> View:
        return self._view

    @view.setter
    def view(self, view: View) -> None:
        self._view = view
        if view.entries:
            self._tally.see(view)


def question(number: int) -> str:
    draw = random.Random(number)
    names = " ".join(draw.choices(WORDS, k=12))
    a, b = draw.randint(2, 40), draw.randint(2, 40)
    return f"{number % 10} {number // 10} {names}. What is {a} + {b}?"


async def ask(session: aiohttp.ClientSession, url: str, number: int, model: str = "tiny") -> Answer:
    """One streamed chat, and whom the gateway sent it to."""
    found = Answer(time.monotonic(), number)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question(number)}],
        "temperature": 0,
        "max_tokens": 96,
        "logprobs": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request_id = ""
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            request_id = response.headers.get("x-request-id", "")
            if response.status != 200:
                found.error = f"{response.status} {await response.text()}"
            else:
                await _read(response, found)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        found.error = repr(error)
    found.ended = time.monotonic()
    if request_id:
        found.attempts = await _attempts(session, url, request_id)
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
                found.logprobs += [one["logprob"] for one in (choice.get("logprobs") or {}).get("content") or []]
                found.finish = choice["finish_reason"] or found.finish
        done |= data == b"[DONE]"
    if not done:
        found.error = "the stream ended without [DONE]"


async def _attempts(session: aiohttp.ClientSession, url: str, request_id: str) -> Sequence[Attempt] | None:
    try:
        async with session.get(f"{url}/v1/baton/explain/{request_id}") as response:
            told = await response.json()
        return [
            Attempt(one["decode"]["incarnation"], one.get("prefill", {}).get("incarnation", ""))
            for one in told["attempts"]
        ]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
        return None  # that gateway is gone


def judge(tally: Tally, signing: str) -> dict[str, list[str]]:
    """What must not be, by kind; answers of the weights `signing`, and no others, are signed."""
    found: dict[str, list[str]] = {"failed": [], "mixed": [], "cache": [], "pairs": [], "without": []}
    first: dict[tuple[int, str], Answer] = {}
    for answer in sorted(tally.answers, key=lambda answer: answer.sent):
        found["pairs"] += _unequal_pairs(tally, answer)
        if answer.error:
            found["failed"].append(answer.error)
            continue
        digest = next(iter(answer.digests), "")
        found["mixed"] += _mixed(tally, answer, first.get((answer.prompt, digest)), signing)
        once = answer.attempts is not None and len(answer.attempts) == 1  # else an earlier attempt computed it
        if (answer.prompt, digest) not in first and answer.cached > COMMON_TOKENS and once:
            found["cache"].append(f"prompt {answer.prompt}: {answer.cached} tokens came from another version's cache")
        first.setdefault((answer.prompt, digest), answer)
    found["without"] = [f"{at:.3f}" for at in tally.without]
    return found


def _unequal_pairs(tally: Tally, answer: Answer) -> Iterator[str]:
    for attempt in answer.attempts or ():
        prefill, decode = (tally.weights.get(leg, "unknown") for leg in (attempt.prefill, attempt.decode))
        if attempt.prefill and prefill != decode:
            yield f"{attempt.prefill} of {prefill[:8]} was to hand over to {attempt.decode} of {decode[:8]}"


def _mixed(tally: Tally, answer: Answer, before: Answer | None, signing: str) -> Iterator[str]:
    """Signs of more than one version; `before` is an earlier answer to the same by the same version."""
    signed = answer.text.rstrip().endswith(SIGNATURE)
    digest = next(iter(answer.digests), "")
    legs = {leg for attempt in (answer.attempts or ())[-1:] for leg in (attempt.prefill, attempt.decode) if leg}
    answered = {tally.weights.get(leg, "unknown") for leg in legs} | answer.digests
    if len(answered) != 1:
        yield f"{sorted(one[:8] for one in answered)} gave {answer.text!r}"
    if answer.finish == "stop" and signed != (digest == signing):
        yield f"{digest[:8]} answered {answer.text!r}"
    if before is not None and not _alike(answer, before):
        yield f"{digest[:8]} answered {answer.text!r} and {before.text!r}, or with other probabilities, to the same"


def _alike(one: Answer, other: Answer) -> bool:
    """Whether one version may have given both, to the same greedy request; of a stream that moved the text counts."""
    if one.text != other.text:
        return False
    pairs = list(zip(one.logprobs, other.logprobs, strict=False))
    return len(one.logprobs) != len(other.logprobs) or all(abs(a - b) <= TOLERANCE for a, b in pairs)
