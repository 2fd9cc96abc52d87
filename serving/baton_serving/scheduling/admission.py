"""How many pages a request may come to need, and how sure we want to be that they will be there."""

from __future__ import annotations

from collections.abc import Iterable

from baton_serving.kv.manager import KVManager, RequestPages
from baton_serving.scheduling.request import Request

CLIPPED_NEW_TOKENS = (
    4096  # nobody is charged for more output than this in advance: max_new_tokens is often a wild guess
)


class NewTokenRatio:
    """The share of their possible output for which running requests are expected to need pages.

    Starts at a guess, falls step by step while nothing goes wrong, and is set anew from what was seen when requests
    had to be retracted. Constants as in SGLang, so that `schedule_conservativeness` means the same.
    """

    START = 0.7
    FLOOR = 0.14  # of the start value
    DECAY_STEPS = 600
    MARGIN_TOKENS = 20  # per request, added to what it has produced when it has to be estimated after a retraction

    __slots__ = ("_decay", "_floor", "_start", "value")

    def __init__(self, conservativeness: float) -> None:
        self._start = min(self.START * conservativeness, 1.0)
        self._floor = self._start * self.FLOOR
        self._decay = (self._start - self._floor) / self.DECAY_STEPS
        self.value = self._start

    def decay(self) -> None:
        self.value = max(self._floor, self.value - self._decay)

    def after_retraction(self, remaining: Iterable[Request]) -> None:
        produced = possible = 0
        for request in remaining:
            produced += len(request.output) + self.MARGIN_TOKENS
            possible += request.limit
        self.value = min(1.0, produced / (possible + 1)) if possible else self._start

    def reset(self) -> None:
        self.value = self._start


class PageEstimate:
    """Page counts over all KV groups. `chunk` is the largest number of tokens that one step adds to a request.

    In window groups a request holds at most its window plus what two steps add, since pages are let go only when the
    step after the one that slid past them is planned.
    """

    def __init__(self, kv: KVManager, chunk: int | None) -> None:
        self._kv = kv
        self._page_size = kv.page_size
        self._full = len(kv.full)
        self._windowed = len(kv.windowed)
        self._window_pages: int | None = None
        if chunk is not None:
            self._window_pages = -(-(kv.window + 2 * chunk) // kv.page_size) + 1

    def pages(self, tokens: int) -> int:
        """The most pages that a request of `tokens` tokens holds at any one time."""
        count = -(-tokens // self._page_size)
        return count * self._full + self._bounded(count, 0) * self._windowed

    def growth(self, held: RequestPages, tokens: int) -> int:
        """The most pages that `held` will need on top to reach `tokens` tokens."""
        count = max(0, -(-tokens // self._page_size) - held.count)
        return count * self._full + self._bounded(count, held.count - held.window_start) * self._windowed

    def largest_request(self) -> int:
        """The most tokens that one request alone can reach."""
        low, high = 0, self._kv.pool.total * self._page_size
        while low < high:
            middle = (low + high + 1) // 2
            if self.pages(middle) <= self._kv.pool.total:
                low = middle
            else:
                high = middle - 1
        return low

    def future(self, request: Request, ratio: float) -> int:
        """Pages that an admitted request is expected to need still: the whole prompt, `ratio` of its output."""
        output = min(request.limit - request.planned, CLIPPED_NEW_TOKENS)
        tokens = max(request.goal, request.computed) + int(output * ratio)
        return self.growth(request.page_list, tokens)

    def _bounded(self, count: int, held: int) -> int:
        if self._window_pages is None:
            return count
        return min(count, max(0, self._window_pages - held))
