"""The waiting queue: requests that hold nothing yet, or nothing any more."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from baton_serving.kv.manager import KVManager
from baton_serving.scheduling.policy import (
    PREFIX_POLICIES,
    PREFIX_POLICY_LIMIT,
    dfs_weight_order,
    longest_prefix_order,
    static_key,
)
from baton_serving.scheduling.request import Request


class WaitingQueue:
    """Kept sorted by the policy's static key; policies that look at the tree reorder a short queue when asked.

    `limit` bounds newcomers, not requests that come back after a retraction.
    """

    def __init__(self, policy: str, limit: int | None, seed: int) -> None:
        self._policy = policy
        self._limit = limit
        self._static_key = static_key(policy, seed)
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    @property
    def full(self) -> bool:
        return self._limit is not None and len(self._requests) >= self._limit

    def push(self, request: Request) -> None:
        insort(self._requests, request, key=self._key)

    def remove(self, request: Request) -> None:
        i = bisect_left(self._requests, self._key(request), key=self._key)
        if i == len(self._requests) or self._requests[i] is not request:
            raise KeyError(request.rid)
        del self._requests[i]

    def order(self, kv: KVManager) -> list[Request]:
        """The requests in the order in which they should be admitted now."""
        requests = self._requests
        if self._policy not in PREFIX_POLICIES or not 1 < len(requests) <= PREFIX_POLICY_LIMIT:
            return list(requests)
        views = [request.waiting_view() for request in requests]
        paths = [kv.tree.match_path(r.namespace, r.goal_key, r.prefix_limit) for r in requests]
        if self._policy == "lpm":
            order = longest_prefix_order(views, [len(path) for path in paths])
        else:
            order = dfs_weight_order(views, [[node.serial for node in path] for path in paths])
        return [requests[i] for i in order]

    def _key(self, request: Request) -> tuple[float, ...]:
        return self._static_key(request.waiting_view())
