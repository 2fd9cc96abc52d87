"""A live picture of a service: its processes, and its workers as the bootstrap server sees them."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from baton_serving.local.plan import Kind
from baton_serving.local.supervisor import Slot, Supervisor

_STYLES = {"ready": "green", "running": "green", "starting": "yellow", "draining": "yellow"}


def service_table(supervisor: Supervisor) -> Table:
    """One row per process; workers with what they reported last."""
    title = f"{supervisor.plan.name}: {supervisor.plan.model} at {supervisor.url or '…'}"
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for column in ("process", "state", "weights", "running", "waiting tokens", "free pages", "pid", "starts"):
        table.add_column(column, justify="left" if column in ("process", "state", "weights") else "right")
    for slot in supervisor.slots.values():
        state = state_of(slot, supervisor)
        style = _STYLES.get(state, "red")
        pid = str(slot.child.pid) if slot.child is not None and slot.running else ""
        table.add_row(slot.spec.name, Text(state, style), *_figures(slot, supervisor), pid, str(slot.starts))
    return table


def state_of(slot: Slot, supervisor: Supervisor) -> str:
    """One word, or how the process ended."""
    if not slot.running:
        return "starting" if slot.last_status is None else f"ended ({slot.last_status})"
    if slot.spec.kind is not Kind.WORKER:
        return "running" if slot.facts else "starting"
    entry = supervisor.view.entries.get(slot.spec.name)
    return "starting" if entry is None else entry.status.state


def _figures(slot: Slot, supervisor: Supervisor) -> tuple[str, str, str, str]:
    entry = supervisor.view.entries.get(slot.spec.name) if slot.spec.kind is Kind.WORKER else None
    if entry is None:
        return "", "", "", ""
    load = entry.status.load
    return (
        entry.worker.weight_digest[:12],
        str(load.running),
        str(load.queued_tokens),
        f"{load.free_pages}/{load.total_pages}",
    )
