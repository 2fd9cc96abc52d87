"""Who goes first and who must give way: pure functions over small tuples.

Every order is by class first: higher priority, then requests whose answer has begun, here before they were retracted or
at a worker that was lost (they have waited and were served before), then the policy, then arrival.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

POLICIES = ("fcfs", "lpm", "lof", "random", "dfs-weight")
PREFIX_POLICIES = frozenset({"lpm", "dfs-weight"})

PREFIX_POLICY_LIMIT = 128  # waiting requests; with more, matching all of them costs more than a good order brings


class Waiting(NamedTuple):
    """What a policy may know of a waiting request."""

    priority: int
    begun: bool
    arrival: int
    max_new_tokens: int


StaticKey = Callable[[Waiting], tuple[float, ...]]


def static_key(policy: str, seed: int) -> StaticKey:
    """The sort key under which a queue is kept. Policies that look at the tree keep it in order of arrival."""

    def arrival(waiting: Waiting) -> tuple[float, ...]:
        return (-waiting.priority, not waiting.begun, waiting.arrival)

    def longest_output(waiting: Waiting) -> tuple[float, ...]:
        return (-waiting.priority, not waiting.begun, -waiting.max_new_tokens, waiting.arrival)

    def shuffled(waiting: Waiting) -> tuple[float, ...]:
        draw = zlib.crc32(f"{seed} {waiting.arrival}".encode())
        return (-waiting.priority, not waiting.begun, draw, waiting.arrival)

    return {"lof": longest_output, "random": shuffled}.get(policy, arrival)


def longest_prefix_order(waiting: Sequence[Waiting], hit_pages: Sequence[int]) -> list[int]:
    """Indices of `waiting`, the one with the most pages in the tree first."""
    return sorted(
        range(len(waiting)),
        key=lambda i: (-waiting[i].priority, not waiting[i].begun, -hit_pages[i], waiting[i].arrival),
    )


def dfs_weight_order(waiting: Sequence[Waiting], paths: Sequence[Sequence[int]]) -> list[int]:
    """Indices of `waiting` in depth-first order of the tree, subtrees with more waiting requests first.

    `paths[i]` names the nodes from the root to the end of request i's hit. Requests that share a prefix come together.
    """
    weight: dict[int, int] = {}
    for path in paths:
        for node in path:
            weight[node] = weight.get(node, 0) + 1

    def key(i: int) -> tuple[int, bool, tuple[tuple[int, int], ...], int]:
        # The closing (1, 0) sorts after every (-weight, node): children come before their parent's own requests.
        descent = (*((-weight[node], node) for node in paths[i]), (1, 0))
        return (-waiting[i].priority, not waiting[i].begun, descent, waiting[i].arrival)

    return sorted(range(len(waiting)), key=key)


class Running(NamedTuple):
    """What the retraction order may know of a running request."""

    priority: int
    output_tokens: int
    prompt_tokens: int
    arrival: int


def retraction_order(running: Sequence[Running]) -> list[int]:
    """Indices of `running`, first who gives way first: low priority, little output, long prompt, late."""
    return sorted(
        range(len(running)),
        key=lambda i: (
            running[i].priority,
            running[i].output_tokens,
            -running[i].prompt_tokens,
            -running[i].arrival,
        ),
    )
