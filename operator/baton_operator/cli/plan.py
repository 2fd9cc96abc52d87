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
from baton_operator.planner.revision import RoleRevision, wanted_revisions
from baton_operator.planner.worker import role_of


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
    for role in begun:
        yield f"{_count(after, new[role])} {role} workers of revision {new[role].revision} start beside what runs"
    ended = [role for role in old if old[role] != new.get(role)]
    if begun and ended:
        yield f"at the peak {_peak(after, before)} devices are taken; then, when all new workers are ready:"
    for role in ended:
        yield f"the {role} workers of revision {old[role].revision} end their requests and leave"
    for role in new:
        if role not in begun and before is not None and _count(before, old[role]) != _count(after, new[role]):
            yield f"{role} goes from {_count(before, old[role])} to {_count(after, new[role])} workers; none restarts"
    if before is not None and not begun and not ended:
        yield "no worker restarts"


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
    total: dict[RoleRevision, int] = {}
    for service in [after] if before is None else [after, before]:
        for revision in wanted_revisions(service.spec):
            devices = role_of(_context(service), revision.role).parallelism.devices * _count(service, revision)
            total[revision] = max(total.get(revision, 0), devices)
    return sum(total.values())


def _count(service: InferenceService, revision: RoleRevision) -> int:
    return role_of(_context(service), revision.role).replicas


def _context(service: InferenceService) -> Context:
    return Context(Service(service))
