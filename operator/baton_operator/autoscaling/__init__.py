"""The operator's own autoscaling: how many workers each role should have, from what the workers report.

Pure: `decide` takes what was reported, what is remembered and the time, and returns numbers and what to remember. It
is fed every `PERIOD` seconds by the operator, and by simulated fleets.
"""

from baton_operator.autoscaling.decide import PERIOD, Decision, decide
from baton_operator.autoscaling.memory import Memory
from baton_operator.autoscaling.model import Bounds, Fleet, Targets

__all__ = ["PERIOD", "Bounds", "Decision", "Fleet", "Memory", "Targets", "decide"]
