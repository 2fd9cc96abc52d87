"""Plans decode: one row per running request, and retraction when their next pages are not there."""

from __future__ import annotations

from baton_serving.scheduling.builder import StepBuilder
from baton_serving.scheduling.request import Event, Request
from baton_serving.scheduling.roster import Roster


class DecodePlanner:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._kv = roster.kv

    def join(self) -> None:
        """Give a place in the batch to requests whose KV came from, or was to go to, a peer."""
        roster = self._roster
        for request in list(roster.joining):
            if request.slot < 0:
                if not roster.slots:
                    continue
                request.slot = roster.slots.pop()
            roster.joining.remove(request)
            roster.outgoing.set_up(request)
            request.advance(Event.PREFILLED)
            roster.running.append(request)

    def plan(self, builder: StepBuilder) -> None:
        """Add a decode row for every running request whose next page is there; the others sit this step out."""
        roster = self._roster
        growing = [request for request in roster.running if request.computed >= request.page_list.capacity]
        stalled = self._grow(growing) if growing else []
        rows = [request for request in roster.running if request not in stalled] if stalled else roster.running
        builder.decode(rows)
        for request in rows:
            if request.planned >= request.limit:
                roster.running = [other for other in roster.running if other.planned < other.limit]
                break
        if rows:
            roster.ratio.decay()

    def _grow(self, growing: list[Request]) -> list[Request]:
        """Give each request its next page; those that got none, after having retracted whoever must give way."""
        roster, kv = self._roster, self._kv
        need = len(growing) * kv.groups
        if need > kv.available and roster.retract_for(need):
            growing = [request for request in growing if request in roster.running]
        stalled = []
        for request in growing:
            covered = request.page_list.count
            if kv.grow(request.page_list, request.computed + 1):
                roster.outgoing.write_pages(request, covered)
            else:
                stalled.append(request)
        return stalled
