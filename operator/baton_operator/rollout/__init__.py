"""Rolling one version of a service out over another: pure, shared by the operator and by `baton up`.

`step(target, policy, seen, memory)` looks at what is there now and says what every worker should do next; what cannot
be seen again after a restart is in `Memory`, which the caller keeps. The guarantee, checked at each step: at every
instant some version has a *serving set*, a prefill and a decode worker or a worker that serves whole.
"""

from baton_operator.rollout.invariant import serving, serving_sets
from baton_operator.rollout.model import (
    DECODE,
    PREFILL,
    WHOLE,
    Health,
    Memory,
    Order,
    Phase,
    Policy,
    Seen,
    Stage,
    Step,
    Strategy,
    Target,
    Worker,
)
from baton_operator.rollout.policy import policy_of
from baton_operator.rollout.step import step

__all__ = [
    "DECODE",
    "PREFILL",
    "WHOLE",
    "Health",
    "Memory",
    "Order",
    "Phase",
    "Policy",
    "Seen",
    "Stage",
    "Step",
    "Strategy",
    "Target",
    "Worker",
    "policy_of",
    "serving",
    "serving_sets",
    "step",
]
