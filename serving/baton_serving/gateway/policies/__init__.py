"""How a worker is chosen: pure functions over a snapshot, so that a simulator runs the very same code."""

from __future__ import annotations

from collections.abc import Mapping

from baton_serving.gateway.policies.hashed import consistent_hash, session_affinity
from baton_serving.gateway.policies.scored import cache_aware, least_load, least_ttft
from baton_serving.gateway.policies.simple import power_of_two, random, round_robin, weighted
from baton_serving.gateway.snapshot import Policy

POLICIES: Mapping[str, Policy] = {
    "round_robin": round_robin,
    "random": random,
    "power_of_two": power_of_two,
    "least_load": least_load,
    "cache_aware": cache_aware,
    "least_ttft": least_ttft,
    "session_affinity": session_affinity,
    "consistent_hash": consistent_hash,
}

__all__ = ["ASK_MEMORY", "POLICIES", "weighted"]

ASK_MEMORY = frozenset({"cache_aware", "least_ttft"})  # policies that look at what the routing memory holds
