"""`baton up -f manifest.yaml`: run an InferenceService as local processes, until Ctrl-C.

Changes of the manifest are rolled out while it runs; `baton rollout` shows and steers them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console
from rich.live import Live

from baton_bootstrap.announce import announce
from baton_operator.api import InferenceService
from baton_serving import logs
from baton_serving.errors import InternalError
from baton_serving.local.control import Control
from baton_serving.local.manifest_file import ManifestFile
from baton_serving.local.plan import Plan
from baton_serving.local.rollout import LocalRollout
from baton_serving.local.service import plan_manifest, read_manifest, this_machine
from baton_serving.local.supervisor import Supervisor
from baton_serving.local.table import service_table, state_of

_COLOURS = ("cyan", "magenta", "blue", "green", "yellow")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, required=True, help="manifest of an InferenceService")
    parser.add_argument("--port", type=int, help="port of the gateway instead of the manifest's; 0: any")
    parser.add_argument("--undivided", action="store_true", help="no prefill workers: decode workers serve whole")
    parser.add_argument("--verbose", action="store_true", help="show the log lines of all processes")
    parser.add_argument("--no-restart", action="store_true", help="end everything as soon as one process ends")
    parser.add_argument("--ready-file", type=Path, help="write the gateway's URL here as JSON once all is ready")


def run(args: Namespace) -> int:
    """Run until SIGINT or SIGTERM; returns the exit status: 1 when a process could not be kept."""
    logs.configure("up", "warning")
    service = read_manifest(args.file)
    plan = plan_manifest(args.file, gateway_port=args.port, undivided=args.undivided)
    try:
        asyncio.run(_serve(plan, service, args, Console(stderr=True)))
    except InternalError as error:
        print(f"baton: {error.message}", file=sys.stderr)
        return 1
    return 0


async def _serve(plan: Plan, service: InferenceService, args: Namespace, console: Console) -> None:
    printer = _LinePrinter(console, [spec.name for spec in plan.processes], shown=args.verbose)
    supervisor = Supervisor(plan, on_line=printer, restart=not args.no_restart)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop)
    rollout = LocalRollout(supervisor, plan.workers, service)
    control = Control(plan.name, rollout)
    await control.start()
    manifest = ManifestFile(args.file, rollout, this_machine(), undivided=args.undivided)
    running = asyncio.create_task(supervisor.run())
    beside = [
        asyncio.create_task(_show(supervisor, console)),
        asyncio.create_task(rollout.run()),
        asyncio.create_task(manifest.run()),
    ]
    await supervisor.ready()
    if not supervisor.stopping:
        announce({"service": "up", "pid": os.getpid(), "http": supervisor.url}, args.ready_file)
    try:
        await running
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await control.close()


async def _show(supervisor: Supervisor, console: Console) -> None:
    """A live table on a terminal; elsewhere a line for every process that changes its state."""
    if console.is_terminal:
        with Live(service_table(supervisor), console=console, auto_refresh=False) as live:
            while True:
                await supervisor.changed()
                live.update(service_table(supervisor), refresh=True)
    shown: dict[str, str] = {}
    while True:
        for name, slot in supervisor.slots.items():
            state = state_of(slot, supervisor)
            if shown.get(name) != state:
                console.print(f"{name}: {state}", markup=False, highlight=False)
                shown[name] = state
        await supervisor.changed()


class _LinePrinter:
    """Prints log lines of the processes, each with its process's name in a colour of its own."""

    def __init__(self, console: Console, names: list[str], *, shown: bool) -> None:
        self._console = console
        self._shown = shown
        self._width = max(map(len, names))
        self._colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}

    def __call__(self, name: str, line: str) -> None:
        if self._shown:
            prefix = f"[{self._colours[name]}]{name:<{self._width}}[/] "
            self._console.print(prefix, end="", highlight=False)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
