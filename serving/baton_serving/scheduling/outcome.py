"""Turns the results of a finished step into outputs, and moves requests on."""

from __future__ import annotations

import math

from baton_serving.errors import InternalError, InvalidRequest
from baton_serving.kv.layout import NULL_PAGE
from baton_serving.scheduling.builder import Flight
from baton_serving.scheduling.events import ChunkReady, Failure, Finish, TokenOutput
from baton_serving.scheduling.request import Request, State
from baton_serving.scheduling.roster import Roster
from baton_serving.scheduling.step import PageWrite, StepResult, TokenLogprobs

NOT_A_NUMBER = Failure(InternalError.code, "the model computed values that are not numbers for this request")
PROCESSOR_FAILED = Failure(
    InvalidRequest.code,
    "the custom logit processor failed on this request; check custom_params",
    "custom_logit_processor",
)


class OutcomeBook:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._kv = roster.kv

    def commit(self, flight: Flight, result: StepResult) -> None:
        """Book the results of `flight`, row by row; rows of requests that ended meanwhile are dropped."""
        roster = self._roster
        plan = flight.plan
        if result.step != plan.step or len(result.tokens) != plan.rows:
            raise InternalError(
                f"step {plan.step} has {plan.rows} rows; its result names step {result.step}, {len(result.tokens)} rows"
            )
        roster.committed = plan.step
        for node in flight.pinned:
            self._kv.unpin(node)
        broken = dict.fromkeys(result.nan_rows, NOT_A_NUMBER) | dict.fromkeys(result.failed_rows, PROCESSOR_FAILED)
        windowed = bool(self._kv.windowed)
        rows = zip(flight.requests, plan.starts, plan.lengths, plan.extend, plan.sample, result.tokens, strict=True)
        for row, (request, start, length, extend, sample, token) in enumerate(rows):
            if request.ended:
                continue
            if row in broken:
                roster.end(request, failure=broken[row])
                continue
            request.kv = start + length
            if extend:
                self._book_chunk(request, result.prompt_logprobs.get(row), start + length == request.goal)
            if windowed and request.kv >= request.page_list.slide_at:
                self._slide(request)
            if sample:
                self._book_token(request, token, result.logprobs.get(row))
            elif request.limit == 0 and start + length == request.goal:
                self._end_without_output(request, result.embeddings.get(row))
        roster.settle()

    def _book_token(self, request: Request, token: int, logprobs: TokenLogprobs | None) -> None:
        """Take in one sampled token and put it out, with the end of the request if it is the last."""
        request.output.append(token)
        if request.handoff:
            if logprobs is not None:
                request.output_logprobs.append(logprobs)
            self._roster.stop(request)
            return
        self.put_out(request, [token], [] if logprobs is None else [logprobs], request.finish_at(len(request.output)))

    def put_out(
        self, request: Request, tokens: list[int], logprobs: list[TokenLogprobs], finish: Finish | None
    ) -> None:
        """Report tokens that are in `request.output` already, and the end of the request if they end it."""
        roster = self._roster
        request.sent += len(tokens)
        first = not request.timings.first_token
        if first:
            request.timings.first_token = roster.clock()
        if finish is not None:
            roster.end(request, finish, tokens=tokens, logprobs=logprobs)
            return
        output = TokenOutput(
            rid=request.rid,
            token_ids=tokens,
            prompt_tokens=len(request.prompt),
            cached_tokens=request.cached,
            completion_tokens=request.sent,
            logprobs=logprobs,
        )
        if first:
            output.prompt_logprobs = request.take_prompt_logprobs()
            output.timings = request.timings
        roster.outputs.append(output)

    def _end_without_output(self, request: Request, embedding: list[float] | None) -> None:
        if request.handoff:
            self._roster.stop(request)
        elif embedding is not None and not all(map(math.isfinite, embedding)):
            self._roster.end(request, failure=NOT_A_NUMBER)
        else:
            self._roster.end(request, Finish("length"), embedding=embedding)

    def _book_chunk(self, request: Request, prompt_logprobs: list[TokenLogprobs] | None, last: bool) -> None:
        """Share a chunk's whole pages through the tree, and tell the handoff of them."""
        roster = self._roster
        if prompt_logprobs is not None and request.prompt_logprobs is not None:
            request.prompt_logprobs += prompt_logprobs
            request.logprob_next += len(prompt_logprobs)
        goes_on = self._kv.publish(request.page_list, request.goal_key, request.kv)
        if request.unpublished and (last or not goes_on):
            request.unpublished = False
            roster.unpublished.remove(request)
        if last and not request.timings.prefilled:
            request.timings.prefilled = roster.clock()
        if request.handoff and request.state is not State.RETRACTING:
            self._announce(request, last)

    def _announce(self, request: Request, last: bool) -> None:
        held = request.page_list
        page_size = self._kv.page_size
        end = held.count if last else request.kv // page_size
        start = request.announced
        needed = self._kv.tree.first_needed(request.goal)
        first = [max(start, needed) if g in self._kv.windowed else start for g in range(self._kv.groups)]
        pages = [group[begin:end] for begin, group in zip(first, held.pages, strict=True)]
        request.announced = end
        request.pinned_by_peer = True
        self._roster.handoffs.append(ChunkReady(request.rid, first, pages, request.kv, last))

    def _slide(self, request: Request) -> None:
        """Let window pages go that fell out of sight, here and in the executors' tables."""
        start, end = self._kv.slide(request.page_list, request.kv)
        for group in self._kv.windowed:
            write = PageWrite(request.slot, group, start, [NULL_PAGE] * (end - start))
            self._roster.outgoing.page_writes.append(write)
