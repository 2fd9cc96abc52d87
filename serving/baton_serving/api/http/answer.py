"""Answering with a manager's outputs: whole, or as a stream of events, and noticing clients that go away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import Final, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from baton_serving.api.http import sse
from baton_serving.api.http.problems import error_body
from baton_serving.errors import BatonError, Cancelled, InternalError
from baton_serving.runtime.messages import TokenOutput
from baton_serving.runtime.outputs import merge
from baton_serving.runtime.request_spans import stages_of
from baton_serving.runtime.requests import ChoiceOutput
from baton_serving.runtime.served import UNKNOWN_WEIGHTS

log = logging.getLogger(__name__)
T = TypeVar("T")

STAGES_HEADER: Final = "x-baton-stages"

Outputs = AsyncGenerator[ChoiceOutput, None]


class Renderer(Protocol):
    """One route's format of one request's answers."""

    def event(self, output: ChoiceOutput) -> bytes:
        """The events for `output`, each ended by a blank line."""
        ...

    def end(self) -> bytes:
        """The events after the last output."""
        ...

    def whole(self, answers: list[ChoiceOutput]) -> bytes:
        """The response body when nothing is streamed; one output per choice, in order."""
        ...


async def answer(request: Request, outputs: Outputs, renderer: Renderer, *, stream: bool) -> Response:
    """The response to `request`. Errors before the first output become their status, later ones an error event."""
    if stream:
        return await _streamed(request, outputs, renderer)
    async with aclosing(outputs):
        answers = await unless_disconnected(request, gather(outputs))
    return Response(renderer.whole(answers), headers=_stages(answers), media_type="application/json")


def _stages(answers: Sequence[ChoiceOutput]) -> dict[str, str]:
    """A header for gateways, which explain it: how many seconds each stage of the first of these answers took so far,
    and what KV pages came from other workers for all of them.
    """
    found = [answer.tokens.timings for answer in answers if answer.tokens.timings is not None]
    told = [f"{stage.name}={stage.end - stage.start:.6f}" for stage in stages_of(found[0] if found else None)]
    arrived = [timings for timings in found if timings.transport]
    if arrived:
        pages, size = sum(one.transfer_pages for one in arrived), sum(one.transfer_bytes for one in arrived)
        told += [f"transport={arrived[0].transport}", f"pages={pages}", f"bytes={size}"]
    return {STAGES_HEADER: "; ".join(told)} if told else {}


async def gather(outputs: Outputs) -> list[ChoiceOutput]:
    """One output per choice that says everything, in order."""
    texts: dict[int, list[str]] = {}
    weights = UNKNOWN_WEIGHTS
    tokens: dict[int, TokenOutput] = {}
    async for output in outputs:
        weights = output.weights
        texts.setdefault(output.index, []).append(output.text)
        earlier = tokens.get(output.index)
        tokens[output.index] = output.tokens if earlier is None else merge(earlier, output.tokens)
    return [ChoiceOutput(index, "".join(texts[index]), tokens[index], weights) for index in sorted(tokens)]


async def unless_disconnected(request: Request, awaitable: Awaitable[T]) -> T:
    """The result of `awaitable`, which is cancelled when the client goes away first (Cancelled is raised then)."""
    work = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(_disconnection(request))
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Cancelled("the client went away")
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.wait([work, gone])


async def _streamed(request: Request, outputs: Outputs, renderer: Renderer) -> Response:
    try:
        first = await unless_disconnected(request, anext(outputs))
    except BaseException:
        await outputs.aclose()
        raise
    return StreamingResponse(
        _events(first, outputs, renderer),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **_stages([first])},
    )


async def _events(first: ChoiceOutput, outputs: Outputs, renderer: Renderer) -> AsyncIterator[bytes]:
    async with aclosing(outputs):
        try:
            yield renderer.event(first)
            async for output in outputs:
                yield renderer.event(output)
            yield renderer.end() + sse.DONE
        except BatonError as error:
            yield sse.raw_event(error_body(error))
        except Exception:  # the border of a response that has begun: its client must hear of the end
            log.exception("a stream failed")
            yield sse.raw_event(error_body(InternalError("an internal error ended this stream")))


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
