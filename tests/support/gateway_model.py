"""Scripted workers that generate: tokens are a function of seed, choice and position, as a real worker's are.

What a worker does wrong is its `mode`, looked at before every event. All of them belong to one `Model`, which knows who
moves which request and how many are running.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from support.gateway_bench import Call

END = "data: [DONE]\n\n"


def token(seed: int, choice: int, position: int) -> int:
    return (seed * 31 + choice * 17 + position * 7) % 1000


def length(body: dict[str, Any], choice: int) -> int:
    """Choices end at different times."""
    return int(body.get("max_tokens", 8)) + 2 * choice


@dataclass
class Behaviour:
    """How one worker answers. `after`: events that a decode leg sends before the mode shows."""

    mode: str = "well"
    after: int = 0


@dataclass
class Running:
    """A stream that a worker sends. `stopped`: it was asked to stand still; `taken`: another has it all."""

    tokens: list[list[int]]
    stopped: bool = False
    still: asyncio.Event = field(default_factory=asyncio.Event)
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    given_up: asyncio.Event = field(default_factory=asyncio.Event)


class Model:
    """What the workers share. `pace` is a turn of the event loop between two events."""

    def __init__(self) -> None:
        self.running: dict[str, Running] = {}
        self.moves: dict[str, Running] = {}
        self.active = 0
        self.resumed: list[dict[str, Any]] = []
        self.refuse_takers = False

    def script(self, behaviour: Behaviour, role: str) -> Any:
        async def run(call: Call) -> None:
            self.active += 1
            try:
                await self._answer(call, behaviour, role)
            finally:
                self.active -= 1

        return run

    async def _answer(self, call: Call, behaviour: Behaviour, role: str) -> None:
        if call.path == "/baton/move":
            await self._move(call)
            return
        if call.body.get("baton_resume"):
            self.resumed.append(call.body)
        if not await misbehave(call, behaviour, 0, headed=False):
            if role == "prefill" and call.body.get("baton_handoff"):
                await call.reply(usage={})
            elif call.body.get("stream"):
                await self._stream(call, behaviour)
            else:
                texts = [words(expected(call.body, index)) for index in range(int(str(call.body.get("n") or 1)))]
                await call.reply(choices=[{"index": index, "text": text} for index, text in enumerate(texts)])

    async def _stream(self, call: Call, behaviour: Behaviour) -> None:
        body: dict[str, Any] = call.body
        n = body.get("n") or 1
        resume = body.get("baton_resume") or {}
        running = Running([list(ids) for ids in resume.get("output_ids", [[]] * n)])
        ticket = body.get("baton_handoff") or {}
        source = self.moves.get(ticket.get("transfer_id", ""))
        if source is not None:
            if self.refuse_takers:
                await call.reply(503, error={"message": "no room", "code": "unavailable"})
                return
            assert running.tokens == source.tokens
            source.taken.set()
        rid = str(body["rid"])
        self.running[rid] = running
        await call.head()
        try:
            await self._events(call, behaviour, body, running, resume)
        finally:
            del self.running[rid]

    async def _events(
        self, call: Call, behaviour: Behaviour, body: dict[str, Any], running: Running, resume: dict[str, Any]
    ) -> None:
        label = resume.get("id") or f"cmpl-{body['rid']}"
        sent = 0
        finished: set[int] = set()
        while len(finished) < len(running.tokens):
            for index, tokens in enumerate(running.tokens):
                if index in finished:
                    continue
                if running.stopped:
                    running.still.set()
                    if await self._handed_over(running):
                        await call.chunk(event(label, index, [], len(tokens), "length") + END.encode())
                        await call.end()
                        return
                    running.stopped = False
                if call.closed.is_set() or await misbehave(call, behaviour, sent, headed=True):
                    return
                if len(tokens) < length(body, index):
                    tokens.append(token(body["seed"], index, len(tokens)))
                    await call.chunk(event(label, index, tokens[-1:], len(tokens) - 1, None))
                    sent += 1
                if len(tokens) >= length(body, index):
                    finished.add(index)
                    await call.chunk(event(label, index, [], len(tokens), "length"))
                await asyncio.sleep(0)
        await call.chunk(END.encode())
        await call.end()

    async def _handed_over(self, running: Running) -> bool:
        taken = asyncio.ensure_future(running.taken.wait())
        given_up = asyncio.ensure_future(running.given_up.wait())
        await asyncio.wait({taken, given_up}, return_when=asyncio.FIRST_COMPLETED, timeout=2)
        for task in (taken, given_up):
            task.cancel()
        return running.taken.is_set()

    async def _move(self, call: Call) -> None:
        running = self.running.get(str(call.body["rid"]))
        if call.body.get("withdraw"):
            self.moves[str(call.body["transfer_id"])].given_up.set()
            await call.reply(known=True)
            return
        if running is None:
            await call.reply(404, error={"message": "no such request", "code": "not_found"})
            return
        running.stopped = True
        still = asyncio.ensure_future(running.still.wait())
        done, _ = await asyncio.wait({still}, timeout=0.5)
        still.cancel()
        if not done:
            await call.reply(400, error={"message": "the request is about to end: let it", "code": "x"})
            return
        self.moves[str(call.body["transfer_id"])] = running
        await call.reply(output_ids=running.tokens[0])


async def misbehave(call: Call, behaviour: Behaviour, sent: int, *, headed: bool) -> bool:
    """Do what the mode says once its time has come; True when that was the end of the answer."""
    if behaviour.mode == "well" or (headed and sent < behaviour.after) or (not headed and behaviour.after):
        return False
    behaviour.after = 0  # from now on at once
    match behaviour.mode:
        case "die":
            call.die()
        case "hang":
            await call.hang()
        case "half":
            call.writer.write(b"40\r\nid: [0," if headed else b"HTTP/1.1 200 OK\r\nConte")
            await call.hang()
        case "garbage":
            call.writer.write(b"zz\r\nwhat?\r\n\r\n")
            await call.hang()
        case "full" if not headed:
            await call.reply(503, error={"message": "full", "code": "unavailable"})
        case "cut" if headed:
            await call.end()
        case "error" if headed:
            error = {"error": {"message": "peer lost", "type": "server_error", "param": None, "code": "unavailable"}}
            await call.chunk(f"data: {json.dumps(error, separators=(',', ':'))}\n\n".encode())
            await call.end()
        case _:
            return False
    return True


MODES = ("die", "hang", "half", "garbage", "full", "cut", "error")


def event(label: str, index: int, tokens: list[int], position: int, reason: str | None) -> bytes:
    ids = json.dumps([index, position, *tokens], separators=(",", ":"))
    choice = {"index": index, "text": words(tokens), "logprobs": None, "finish_reason": reason}
    data = {"id": label, "created": 5, "choices": [choice]}
    return f"id: {ids}\ndata: {json.dumps(data)}\n\n".encode()


def words(tokens: list[int]) -> str:
    return "".join(f" t{one}" for one in tokens)


def expected(body: dict[str, Any], index: int) -> list[int]:
    return [token(int(body["seed"]), index, position) for position in range(length(body, index))]


@dataclass
class Heard:
    """What a client got: per choice its tokens; how it ended."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    done: int = 0
    error: str = ""

    def take(self, event: str) -> None:
        """Read one event. AssertionError for a token that comes twice or never."""
        assert not self.done, f"after the end: {event!r}"
        if event == END.strip():
            self.done += 1
            return
        lines = dict(line.split(": ", 1) for line in event.split("\n"))
        data = json.loads(lines["data"])
        if "error" in data:
            self.error = data["error"]["message"]
            return
        self.labels.add(data["id"])
        [choice] = data["choices"]
        if "id" in lines:
            index, position, *tokens = json.loads(lines["id"])
            had = self.tokens.setdefault(index, [])
            assert position == len(had), f"token {position} of choice {index} after {len(had)}"
            had += tokens
        self.text[choice["index"]] = self.text.get(choice["index"], "") + choice["text"]
        if choice["finish_reason"]:
            assert choice["index"] not in self.finished, "finished twice"
            self.finished.append(choice["index"])

    def check(self, body: dict[str, Any]) -> None:
        """AssertionError unless this is the whole answer, or the beginning of it with an error at the end."""
        whole = bool(self.done)
        assert whole != bool(self.error), self
        for index in range(int(body.get("n") or 1)):
            wanted, got = expected(body, index), self.tokens.get(index, [])
            assert got == wanted if whole else got == wanted[: len(got)]
            assert self.text.get(index, "") == words(got)
        assert not whole or sorted(self.finished) == list(range(int(body.get("n") or 1)))
        assert len(self.labels) <= 1


async def listen(chunks: Any) -> Heard:
    """Read a stream of bytes to its end."""
    heard, rest = Heard(), b""
    async for chunk in chunks:
        rest += chunk
        *events, rest = rest.split(b"\n\n")
        for one in events:
            heard.take(one.decode())
    assert rest == b""
    return heard
