"""Requests that come from a peer or go to one. The transfer itself is `handoff`'s; here are its pages and states."""

from __future__ import annotations

from baton_serving.errors import InvalidRequest, NotFound
from baton_serving.kv.allocator import Quarantine
from baton_serving.scheduling.events import Finish, Reservation
from baton_serving.scheduling.outcome import OutcomeBook
from baton_serving.scheduling.request import Event, Request, State
from baton_serving.scheduling.roster import Roster
from baton_serving.scheduling.step import TokenLogprobs


class Handover:
    def __init__(self, roster: Roster, book: OutcomeBook) -> None:
        self._roster = roster
        self._kv = roster.kv
        self._book = book
        self._quarantines: dict[str, Quarantine] = {}
        self._serial = 0

    # Arrivals

    def reserve(self, request: Request, tokens: int | None) -> Reservation | None:
        roster, kv = self._roster, self._kv
        request.set_goal()
        tokens = request.goal if tokens is None else tokens
        hit = kv.match(request.namespace, request.goal_key, tokens)
        request.held = held = kv.open(request.rid, request.namespace, hit)
        kv.slide(held, tokens)
        window_from = kv.tree.first_needed(tokens)
        need = kv.pages_for(held, tokens, window_from)
        fits = need + self._headroom(request) <= kv.available
        if not roster.slots or not fits or not kv.grow(held, tokens, window_from):
            kv.release(held)
            request.held = None
            return None
        request.advance(Event.RESERVE)
        request.slot = roster.slots.pop()
        request.pinned_by_peer = True
        request.cached = held.shared * kv.page_size
        roster.requests[request.rid] = request
        roster.reserved.append(request)
        first = [max(held.shared, window_from) if g in kv.windowed else held.shared for g in range(kv.groups)]
        pages = [group[start:] for start, group in zip(first, held.pages, strict=True)]
        return Reservation(request.rid, request.slot, request.cached, first, pages)

    def adopt(
        self,
        rid: str,
        output: list[int],
        unsent: int,
        logprobs: list[TokenLogprobs],
        prompt_logprobs: list[TokenLogprobs] | None,
        cached_tokens: int,
    ) -> None:
        request = self._find(rid, State.RESERVED, State.LEAVING)
        if request.state is State.LEAVING:
            self._roster.unpin(request)
            return
        kv_tokens = len(request.prompt) + max(0, len(output) - 1)
        if kv_tokens > request.page_list.capacity:
            raise InvalidRequest(f"request {rid} reserved {request.page_list.capacity} tokens and brings {kv_tokens}")
        if not output and request.limit > 0:
            raise InvalidRequest(f"request {rid} was computed elsewhere, but brings no first token")
        request.pinned_by_peer = False
        request.output = list(output)
        request.sent = len(output) - unsent
        request.output_logprobs = logprobs
        request.prompt_logprobs = prompt_logprobs
        request.logprob_next = request.logprob_planned = request.logprob_end
        request.cached = max(cached_tokens, 0)
        request.set_goal()
        request.kv = kv_tokens
        self._roster.reserved.remove(request)
        self._kv.publish(request.page_list, request.goal_key, kv_tokens)
        self._go_on(request)

    def release_reservation(self, rid: str, quarantine: bool) -> str | None:
        request = self._find(rid, State.RESERVED, State.LEAVING)
        roster = self._roster
        name = None
        if quarantine:
            held = request.page_list
            request.held = None
            self._serial += 1
            name = f"{rid}#{self._serial}"
            self._quarantines[name] = self._kv.quarantine(held, "a remote write may still land")
        request.ended_badly = True
        if request.state is State.LEAVING:
            roster.unpin(request)
        else:
            roster.abandon(request)
        return name

    def unquarantine(self, owner: str) -> None:
        quarantine = self._quarantines.pop(owner, None)
        if quarantine is None:
            raise NotFound(f"nothing is quarantined for {owner}")
        self._kv.pool.lift(quarantine)
        self._roster.pages_returned = True

    def _headroom(self, request: Request) -> int:
        """Pages to keep free for the output of those that run or are on their way here, this one included."""
        roster, kv = self._roster, self._kv
        promised = sum(roster.estimate.growth(other.page_list, other.goal) for other in roster.prefilling)
        others = [*roster.active, *roster.reserved]
        if not others:
            return 0
        tokens = [min(other.limit - other.planned, roster.config.num_reserved_decode_tokens) for other in others]
        tokens.append(min(request.limit, roster.config.num_reserved_decode_tokens))
        return promised + sum(-(-count // kv.page_size) for count in tokens) * kv.groups

    # Departures

    def extract(self, rid: str) -> Request | None:
        request = self._find(rid, State.DECODE)
        if request.handoff or request.planned >= request.limit:
            return None
        self._roster.stop(request)
        self._roster.settle()
        return request

    def resume(self, rid: str) -> None:
        request = self._find(rid, State.HANDING_OFF)
        request.pinned_by_peer = False
        request.handoff = False
        self._go_on(request)

    def done(self, rid: str) -> bool:
        request = self._roster.requests.get(rid)
        if request is None or not request.pinned_by_peer:
            return False
        if request.state is State.HANDING_OFF:
            self._roster.end(request, Finish("handoff"))
        self._roster.unpin(request)
        return True

    def _go_on(self, request: Request) -> None:
        """Decode from the next step on; report first what nobody reported yet, which may be the end."""
        request.computed = request.kv
        request.planned = len(request.output)
        request.advance(Event.JOIN)
        self._roster.joining.append(request)
        unsent = request.output[request.sent :]
        if unsent or request.planned >= request.limit:
            logprobs, request.output_logprobs = request.output_logprobs, []
            self._book.put_out(request, unsent, logprobs, request.finish_at(len(request.output)))
            self._roster.settle()

    def _find(self, rid: str, *states: State) -> Request:
        request = self._roster.requests.get(rid)
        if request is None:
            raise NotFound(f"no request {rid} is here")
        if request.state not in states:
            raise InvalidRequest(f"request {rid} is {request.state.value}, not {states[0].value}")
        return request
