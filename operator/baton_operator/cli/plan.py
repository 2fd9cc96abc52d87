"""`baton plan -f manifest.yaml`: the steps, devices and capacity that a service, or a change of it, takes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from baton_operator.api import InferenceService
from baton_operator.cli.manifest import add_file_argument, read_or_complain
from baton_operator.planner.context import Context, Service
from baton_operator.planner.records import settings_of
from baton_operator.planner.revision import RoleRevision, wanted_revisions
from baton_operator.planner.worker import build_workload, role_of


def add_arguments(parser: ArgumentParser) -> None:
    add_file_argument(parser)
    parser.add_argument("--from", dest="before", type=Path, help="manifest that runs now; a new service when left out")


def run(args: Namespace) -> int:
    """Print a table of the roles and the steps; exit status 1 when a manifest is wrong."""
    after = read_or_complain(args.file)
    before = read_or_complain(args.before) if args.before else None
    if after is None or (args.before and before is None):
        return 1
    console = Console()
    console.print(_table(after, before))
    for number, step in enumerate(steps(after, before), 1):
        console.print(f"{number}. {step}", markup=False, highlight=False, soft_wrap=True)
    return 0


def steps(after: InferenceService, before: InferenceService | None) -> Iterator[str]:
    """What happens, in order, as sentences."""
    old = {} if before is None else {revision.role: revision for revision in wanted_revisions(before.spec)}
    new = {revision.role: revision for revision in wanted_revisions(after.spec)}
    begun = [role for role in new if new[role] != old.get(role)]
    ended = [role for role in old if old[role] != new.get(role)]
    if before is not None and begun and _in_place(after, before):
        yield f"the {' and '.join(begun)} workers change their weights where they run; none restarts"
        begun = ended = []
    for role in begun:
        yield f"{_count(after, new[role])} {role} workers of revision {new[role].revision} start" + (
            f", {_surge(after, new[role])} at a time beside what runs" if role in old else ""
        )
    if begun and ended:
        yield f"at the peak {_peak(after, before)} devices are taken; as new workers are ready:"
    for role in ended:
        yield f"the {role} workers of revision {old[role].revision} end their requests and leave"
    for role in new:
        if role not in begun and before is not None and _count(before, old[role]) != _count(after, new[role]):
            yield f"{role} goes from {_count(before, old[role])} to {_count(after, new[role])} workers; none restarts"
    if before is not None and old == new:
        yield "no worker restarts"


def _in_place(after: InferenceService, before: InferenceService) -> bool:
    """Whether running workers can become what `after` wants."""
    return after.spec.rollout.strategy == "InPlace" and _settings(after) == _settings(before)


def _settings(service: InferenceService) -> dict[str, str]:
    revisions = wanted_revisions(service.spec)
    return {one.role: settings_of(build_workload(_context(service), one, "")) for one in revisions}


def _surge(service: InferenceService, revision: RoleRevision) -> int:
    bounds = service.spec.rollout.max_surge
    surge = bounds.prefill if revision.role == "prefill" else bounds.decode
    missing = service.spec.rollout.max_unavailable
    return max(1, surge + (missing.prefill if revision.role == "prefill" else missing.decode))


def _table(after: InferenceService, before: InferenceService | None) -> Table:
    table = Table(title=after.metadata.name, title_justify="left")
    for heading in ("role", "revision", "workers", "devices per worker", "devices"):
        table.add_column(heading)
    for revision in wanted_revisions(after.spec):
        each = role_of(_context(after), revision.role).parallelism.devices
        count = _count(after, revision)
        role = f"{revision.role}, serves whole" if revision.whole else revision.role
        table.add_row(role, revision.revision, str(count), str(each), str(count * each))
    table.add_row("at the peak", "", "", "", str(_peak(after, before)))
    return table


def _peak(after: InferenceService, before: InferenceService | None) -> int:
    """Devices taken while new workers run beside old ones."""
    old = {} if before is None else {revision.role: revision for revision in wanted_revisions(before.spec)}
    new = {revision.role: revision for revision in wanted_revisions(after.spec)}
    total = 0
    for role in {**old, **new}:
        ends = 0 if before is None or role not in old else _count(before, old[role]) * _devices(before, role)
        begins = 0 if role not in new else _count(after, new[role]) * _devices(after, role)
        both = role in old and role in new and old[role] != new[role]
        surges = both and before is not None and not _in_place(after, before)
        beside = _surge(after, new[role]) * _devices(after, role) if surges else 0
        total += max(ends, begins, min(ends + begins, ends + beside))
    return total


def _devices(service: InferenceService, role: str) -> int:
    return role_of(_context(service), role).parallelism.devices


def _count(service: InferenceService, revision: RoleRevision) -> int:
    return role_of(_context(service), revision.role).replicas


def _context(service: InferenceService) -> Context:
    return Context(Service(service))
