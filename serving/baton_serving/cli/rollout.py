"""`baton rollout status|pause|resume|undo`: look at, and steer, how a change reaches a service's workers.

The service runs here, with `baton up`, or with `--namespace` in a cluster.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace

from rich.console import Console

from baton_serving.errors import ConfigError
from baton_serving.local.control import ask, plain, running_services
from baton_serving.local.rollout import RolloutStatus

_SHOWN = 12  # lines of history


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "command",
        choices=["status", "pause", "resume", "undo"],
        help="status: show it; pause: change no further worker; resume: go on, also past a canary; undo: go back",
    )
    parser.add_argument("name", nargs="?", help="the service's name; may be left out when only one is running here")
    parser.add_argument("-n", "--namespace", help="that of the InferenceService NAME, for a service in a cluster")
    parser.add_argument("--json", action="store_true", help="print the status as JSON")


def run(args: Namespace) -> int:
    """Print what the service answers, or what the cluster has of it."""
    if args.namespace:
        if not args.name:
            raise ConfigError("name the InferenceService: baton rollout COMMAND NAME -n NAMESPACE")
        from baton_operator.cli import rollout as in_cluster  # the Kubernetes client takes long to import

        return in_cluster.run(args.command, args.namespace, args.name, as_json=args.json)
    status = ask(args.name or _only_service(), args.command)
    if args.json:
        print(json.dumps(plain(status)))
    else:
        _show(status, Console())
    return 0


def _only_service() -> str:
    names = running_services()
    if len(names) == 1:
        return names[0]
    if names:
        raise ConfigError(f"name a service; {', '.join(names)} are running")
    raise ConfigError("no service is running here; start one with baton up, or say -n for one in a cluster")


def _show(status: RolloutStatus, console: Console) -> None:
    console.print(f"{status.phase}: {status.message}", markup=False)
    failed = f", {status.failed} failed" if status.failed else ""
    console.print(f"wanted {status.version}, last whole {status.stable}{failed}", markup=False)
    for name, state in status.workers.items():
        console.print(f"  {name}: {state}", markup=False)
    for news in status.news[-_SHOWN:]:
        at = time.strftime("%H:%M:%S", time.localtime(news.at))
        console.print(f"  {at} {news.phase}: {news.message}", markup=False)
