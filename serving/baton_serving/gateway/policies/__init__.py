"""How a worker is chosen: pure functions over a snapshot, so that a simulator runs the very same code."""

from __future__ import annotations

from collections.abc import Mapping

from baton_serving.gateway.policies.simple import power_of_two, round_robin
from baton_serving.gateway.snapshot import Policy

__all__ = ["POLICIES", "power_of_two", "round_robin"]

POLICIES: Mapping[str, Policy] = {"round_robin": round_robin, "power_of_two": power_of_two}
