"""The planner: manifest and cluster in, next steps out. Pure: no I/O, no clock of its own."""

from baton_operator.planner.context import FIELD_MANAGER, FINALIZER, Context, Service, Settings
from baton_operator.planner.objects import Object, Ref
from baton_operator.planner.observed import Observed, WorkerReport
from baton_operator.planner.plan import Event, Plan, plan

__all__ = [
    "FIELD_MANAGER",
    "FINALIZER",
    "Context",
    "Event",
    "Object",
    "Observed",
    "Plan",
    "Ref",
    "Service",
    "Settings",
    "WorkerReport",
    "plan",
]
