"""The planner's policy as a manifest's `spec.rollout` has it."""

from __future__ import annotations

from baton_operator.api import InferenceService
from baton_operator.rollout.model import DECODE, PREFILL, WHOLE, Policy, Strategy


def policy_of(service: InferenceService) -> Policy:
    """Of `service`; a worker that serves whole counts as a decode worker."""
    rollout = service.spec.rollout
    gates = rollout.gates
    surge, missing = rollout.max_surge, rollout.max_unavailable
    ttft = gates.max_ttft_milliseconds
    return Policy(
        strategy=Strategy(rollout.strategy),
        surge={PREFILL: surge.prefill, DECODE: surge.decode, WHOLE: surge.decode},
        unavailable={PREFILL: missing.prefill, DECODE: missing.decode, WHOLE: missing.decode},
        canary=rollout.canary_percent,
        soak=rollout.soak_seconds,
        deadline=rollout.progress_seconds,
        max_error_rate=gates.max_error_percent / 100,
        max_ttft=float("inf") if ttft is None else ttft / 1000,
        min_requests=gates.min_requests,
        probe=gates.probe is not None,
        paused=rollout.paused,
    )
