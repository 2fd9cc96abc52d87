"""Every accepted request ends in exactly one terminal reply, over real sockets and the real detokenizer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from support.api_world import pipeline, says
from support.scripted_scheduler import Script
from support.tiny_tokenizer import tiny_tokenizer

from baton_serving.errors import BatonError, Cancelled, DeadlineExceeded, InvalidRequest, QueueFull, Unavailable
from baton_serving.runtime.messages import Failure, Finish, GenerateInput, LogprobOptions
from baton_serving.runtime.requests import Choice, ChoiceOutput, GenerateRequest, RequestRecord
from baton_serving.sampling.params import SamplingParams

TEXT = "the quick brown fox 😀 jumps"
TOKENS = tiny_tokenizer().encode(TEXT)


def request(rid: str = "r", choices: int = 1, *, timeout: float | None = None, stream: bool = True) -> GenerateRequest:
    made = [Choice(0, SamplingParams(max_new_tokens=200, seed=i)) for i in range(choices)]
    return GenerateRequest(rid, [[5, 6]], made, stream=stream, timeout=timeout)


async def read(outputs: AsyncGenerator[ChoiceOutput, None]) -> dict[int, str]:
    texts: dict[int, str] = {}
    async with aclosing(outputs):
        async for output in outputs:
            texts[output.index] = texts.get(output.index, "") + output.text
    return texts


class Watcher:
    """Observer that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.records: list[RequestRecord] = []
        self.tokens = 0

    def started(self, record: RequestRecord) -> None:
        self.events.append("started")

    def produced(self, record: RequestRecord, index: int, tokens: int, now: float) -> None:
        self.tokens += tokens

    def finished(self, record: RequestRecord) -> None:
        self.events.append("finished")
        self.records.append(record)

    def failed(self, failure: Failure) -> None:
        self.events.append("failed")


@pytest.mark.parametrize("stream", [True, False])
async def test_all_choices_come_to_their_end(stream: bool) -> None:
    watcher = Watcher()
    async with pipeline(says(TEXT, cached=1), observers=(watcher,)) as (scheduler, manager, detokenizer):
        assert await read(manager.generate(request(choices=3, stream=stream))) == dict.fromkeys(range(3), TEXT)
        assert [message.stream for message in scheduler.received] == [stream] * 3
        assert manager.open_requests == 0
        assert detokenizer.state.open_requests == 0
        assert scheduler.aborted == []
    (record,) = watcher.records
    assert watcher.events == ["started", "finished"]
    assert (record.outcome, watcher.tokens, record.completion_tokens) == ("stop", 3 * len(TOKENS) + 3, watcher.tokens)
    assert record.output_ids == [[*TOKENS, 0]] * 3
    assert (record.prompt_tokens, record.cached_prompt_tokens) == (2, 1)
    assert "".join(record.texts[0]) == TEXT
    assert record.finished >= record.first_token >= record.request.received


async def test_many_requests_at_once() -> None:
    async with pipeline(says(TEXT)) as (_, manager, detokenizer):
        answers = await asyncio.gather(*(read(manager.generate(request(f"r{i}", 2))) for i in range(40)))
        assert answers == [{0: TEXT, 1: TEXT}] * 40
        assert detokenizer.state.open_requests == 0


async def test_a_slow_reader_gets_everything_in_few_pieces() -> None:
    """All was said while the reader slept: memory holds one merged output."""
    gate = threading.Event()
    async with pipeline(says(TEXT, gate=gate, free=1)) as (_, manager, _):
        async with aclosing(manager.generate(request())) as outputs:
            first = await anext(outputs)
            gate.set()
            while manager._open["r"].unfinished:
                await manager.control("ready")
            rest = [output async for output in outputs]
        assert len(rest) == 1
        assert first.text + rest[0].text == TEXT
        assert [*first.tokens.token_ids, *rest[0].tokens.token_ids] == [*TOKENS, 0]
        assert rest[0].tokens.completion_tokens == len(TOKENS) + 1
        assert rest[0].tokens.finish == Finish("stop", 0)


async def test_a_reader_that_leaves_aborts_every_choice() -> None:
    watcher = Watcher()
    async with pipeline(lambda _: Script(TOKENS[:2], None), observers=(watcher,)) as (scheduler, manager, _):
        async with aclosing(manager.generate(request(choices=2))) as outputs:
            await anext(outputs)
        await scheduler.until(lambda: len(scheduler.aborted) == 2)
        assert {abort.rid for abort in scheduler.aborted} == {message.rid for message in scheduler.received}
        assert watcher.records[0].outcome == "disconnected"
        await manager.wait_idle()


@pytest.mark.parametrize(
    ("code", "error"),
    [("queue_full", QueueFull), ("invalid_request_error", InvalidRequest), ("cancelled", Cancelled)],
)
async def test_the_failure_of_one_choice_is_that_of_the_request(code: str, error: type[BatonError]) -> None:
    def script(message: GenerateInput) -> Script:
        return Script([], Failure(code, "no", "prompt")) if message.params.seed == 1 else Script(TOKENS[:1], None)

    async with pipeline(script) as (scheduler, manager, _):
        with pytest.raises(error, match="no"):
            await read(manager.generate(request(choices=2)))
        await scheduler.until(lambda: len(scheduler.aborted) == 1)
        assert scheduler.aborted[0].rid == scheduler.received[0].rid


async def test_tokens_before_a_failure_are_delivered() -> None:
    async with pipeline(lambda _: Script(TOKENS, Failure("unavailable", "gone"))) as (_, manager, _):
        got: list[int] = []

        async def listen() -> None:
            async for output in manager.generate(request()):
                got.extend(output.tokens.token_ids)

        with pytest.raises(Unavailable):
            await listen()
        assert got == TOKENS


async def test_the_deadline_ends_a_request_on_both_sides() -> None:
    async with pipeline(lambda _: Script([5], None)) as (scheduler, manager, _):
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await read(manager.generate(request(timeout=0.05)))
        await scheduler.until(lambda: bool(scheduler.aborted))


async def test_the_death_of_a_child_ends_everything_at_once() -> None:
    watcher = Watcher()
    async with pipeline(lambda _: Script([5], None), observers=(watcher,)) as (scheduler, manager, _):
        tasks = [asyncio.create_task(read(manager.generate(request(f"r{i}")))) for i in range(5)]
        await scheduler.until(lambda: len(scheduler.received) == 5)
        control = asyncio.create_task(manager.control("ready"))
        await asyncio.sleep(0)
        manager.fail_all(Failure("internal_error", "rank0 ended with exit code -9"))
        manager.fail_all(Failure("internal_error", "a second child ended"))
        for task in [*tasks, control]:
            with pytest.raises(BatonError, match="rank0 ended"):
                await task
        with pytest.raises(BatonError, match="rank0 ended"):
            await read(manager.generate(request("late")))
        with pytest.raises(BatonError, match="rank0 ended"):
            await manager.control("ready")
        assert not manager.alive
        assert watcher.events.count("failed") == 1
        assert [record.outcome for record in watcher.records] == ["internal_error"] * 5
        assert manager.open_requests == 0


async def test_closing_ends_what_is_open() -> None:
    async with pipeline(lambda _: Script([5], None)) as (scheduler, manager, _):
        task = asyncio.create_task(read(manager.generate(request())))
        await scheduler.until(lambda: bool(scheduler.received))
        await manager.close()
        with pytest.raises(Unavailable, match="shutting down"):
            await task


async def test_replies_to_requests_that_are_over_are_dropped() -> None:
    """A rid used again right after an abort hears nothing of the first request."""
    async with pipeline(lambda _: Script(TOKENS[:1], None)) as (scheduler, manager, _):
        async with aclosing(manager.generate(request("same"))) as outputs:
            await anext(outputs)
        scheduler.script = says("new")
        assert await read(manager.generate(request("same"))) == {0: "new"}


async def test_an_aborted_request_ends_by_its_own_reply() -> None:
    async with pipeline(lambda _: Script(TOKENS[:1], None)) as (scheduler, manager, _):
        assert not manager.abort("r")
        task = asyncio.create_task(read(manager.generate(request())))
        await scheduler.until(lambda: bool(scheduler.received))
        assert manager.abort("r", "asked")
        await task
        assert scheduler.aborted[0].reason == "asked"


async def test_what_the_scheduler_gets() -> None:
    options = LogprobOptions(start=0, top=2)
    choice = Choice(0, SamplingParams(), output_ids=(7, 8), logprobs=options)
    wanted = GenerateRequest("r", [[5, 6]], [choice], priority=3, timeout=30.0, trace="t", received=12.5)
    async with pipeline(says("a")) as (scheduler, manager, _):
        await read(manager.generate(wanted))
        (message,) = scheduler.received
        assert (message.input_ids, message.output_ids, message.logprobs) == ([5, 6], [7, 8], options)
        assert (message.priority, message.trace, message.received) == (3, "t", 12.5)
        assert message.deadline > 0
        assert message.rid.startswith("r/")
