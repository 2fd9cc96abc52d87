"""Plans prefill: the next chunks of admitted requests, then new admissions as far as tokens, slots and pages allow."""

from __future__ import annotations

from baton_serving.kv.radix import Node, common_tokens
from baton_serving.scheduling.admission import CLIPPED_NEW_TOKENS
from baton_serving.scheduling.builder import StepBuilder
from baton_serving.scheduling.request import Event, Request
from baton_serving.scheduling.roster import Roster

RETRY_STEPS = 16  # between attempts to admit a request that lacked pages, when none came back: the estimate falls


class PrefillPlanner:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._kv = roster.kv
        self._chunk_size = roster.config.chunked_prefill_size
        self._budget = min(roster.config.max_prefill_tokens, self._chunk_size or roster.config.max_prefill_tokens)
        self._share = not roster.config.disable_radix_cache
        self._retry_at = 0

    def plan(self, builder: StepBuilder) -> None:
        """Add extend rows; decode rows that are in the step already count against its budget of tokens."""
        budget = self._budget - len(builder.requests)
        for request in list(self._roster.prefilling):
            if budget <= 0:
                return
            budget -= self._chunk(builder, request, budget)
        roster = self._roster
        if len(roster.queue) and (roster.pages_returned or builder.step >= self._retry_at):
            self._admit(builder, budget)

    def _admit(self, builder: StepBuilder, budget: int) -> None:
        roster = self._roster
        if budget <= 0 or not roster.slots:
            return
        roster.pages_returned = False
        promised = self._promised([*roster.active, *roster.reserved])
        for request in roster.queue.order(self._kv):
            if budget <= 0 or not roster.slots:
                roster.pages_returned = True
                return
            if self._waits_for_prefix(request):
                roster.pages_returned = True
                continue
            taken = self._try_admit(builder, request, budget, promised)
            if taken is None:
                self._retry_at = builder.step + RETRY_STEPS
                return
            if taken == 0:
                roster.pages_returned = True
                return
            budget -= taken
            promised += self._promised([request])

    def _try_admit(self, builder: StepBuilder, request: Request, budget: int, promised: int) -> int | None:
        """Admit and plan the first chunk; its tokens, 0 when this step has no room for it, None when pages lack.

        `promised` pages are expected to be needed by others.
        """
        kv = self._kv
        hit = kv.match(request.namespace, request.goal_key, request.prefix_limit)
        request.held = held = kv.open(request.rid, request.namespace, hit)
        tail: Node | None = hit.tail
        if tail is not None:
            kv.pin(tail)
        fits = self._fits(request, promised)
        if not fits and tail is not None:
            kv.unpin(tail)
            tail = None
            fits = self._fits(request, promised)
        request.computed = held.capacity + (hit.tail_tokens if tail is not None else 0)
        if not fits or not self._chunk_length(builder, request, budget):
            if tail is not None:
                kv.unpin(tail)
            kv.release(held)
            request.held = None
            request.computed = 0
            return 0 if fits else None
        self._enter(request)
        if tail is not None:
            kv.grow(held, request.computed)
            builder.copy(tail, [pages[-1] for pages in held.pages])
        self._roster.outgoing.set_up(request)
        return self._chunk(builder, request, budget)

    def _enter(self, request: Request) -> None:
        roster = self._roster
        roster.queue.remove(request)
        request.advance(Event.ADMIT)
        request.slot = roster.slots.pop()
        if request.cached < 0:
            request.cached = min(request.computed, len(request.prompt))
            request.timings.scheduled = roster.clock()
            roster.prompt_tokens += len(request.prompt)
            roster.cached_tokens += request.cached
        roster.prefilling.append(request)
        if self._share:
            request.unpublished = True
            roster.unpublished.append(request)

    def _promised(self, requests: list[Request]) -> int:
        """Pages that admitted requests are expected to need still."""
        estimate, ratio = self._roster.estimate, self._roster.ratio.value
        return sum(estimate.future(request, ratio) for request in requests)

    def _fits(self, request: Request, promised: int) -> bool:
        """Whether the pages are there for all of the request and for what others will need meanwhile.

        A request that is alone is let in when its first token can be had: there is nobody to wait for.
        """
        roster = self._roster
        alone = not (roster.running or roster.prefilling or roster.joining)
        output = 1 if alone else min(request.limit - len(request.output), CLIPPED_NEW_TOKENS)
        tokens = min(request.goal + output, roster.max_tokens)
        return roster.estimate.growth(request.page_list, tokens) + promised <= self._kv.available

    def _chunk_length(self, builder: StepBuilder, request: Request, budget: int) -> int:
        """How many tokens of the request to compute in this step: all that remain, or up to a page boundary."""
        remaining = request.goal - request.computed
        if self._chunk_size is None:
            return remaining if remaining <= budget or builder.extend_tokens == 0 else 0
        page_size = self._kv.page_size
        room = request.page_list.capacity + self._kv.available // self._kv.groups * page_size - request.computed
        length = min(remaining, budget, room)
        if length < remaining:
            aligned = (request.computed + length) // page_size * page_size - request.computed
            if aligned > 0 or builder.requests:
                return max(0, aligned)
        return length

    def _chunk(self, builder: StepBuilder, request: Request, budget: int) -> int:
        """Plan the request's next chunk; its tokens, or 0 when this step has no room for any."""
        roster = self._roster
        length = self._chunk_length(builder, request, budget)
        covered = request.page_list.count
        end = request.computed + length
        if length <= 0 or not self._kv.grow(request.page_list, end):
            return 0
        roster.outgoing.write_pages(request, covered)
        last = end == request.goal
        builder.extend(request, length, sample=last and request.planned < request.limit)
        if last:
            request.advance(Event.PREFILLED)
            roster.prefilling.remove(request)
            if not request.handoff and request.planned < request.limit:
                roster.running.append(request)
        return length

    def _waits_for_prefix(self, request: Request) -> bool:
        """Whether another request is computing a prefix of this one that the tree does not hold yet."""
        blocker = request.blocker
        if blocker is not None:
            if blocker.unpublished and blocker.page_list.shared < request.blocker_pages:
                return True
            request.blocker = None
        limit = request.prefix_limit // self._kv.page_size
        if limit == 0:
            return False
        for other in self._roster.unpublished:
            if other.namespace != request.namespace:
                continue
            shared = min(common_tokens(other.goal_key, request.goal_key) // self._kv.page_size, limit)
            if shared > other.page_list.shared:
                held = self._kv.tree.match_path(request.namespace, request.goal_key, request.prefix_limit)
                if len(held) < shared:
                    request.blocker, request.blocker_pages = other, shared
                    return True
        return False
