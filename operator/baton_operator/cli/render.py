"""`baton render -f manifest.yaml`: the objects that the operator would make of a new service."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime

from baton_operator.cli.manifest import add_file_argument, read_or_complain, settings_without_cluster
from baton_operator.planner import Observed, Service, plan
from baton_operator.text import to_yaml


def add_arguments(parser: ArgumentParser) -> None:
    add_file_argument(parser)


def run(args: Namespace) -> int:
    """Print the objects as YAML, always in the same order; exit status 1 when the manifest is wrong.

    Records of revisions are left out: they repeat the workloads. Owner references are missing, as only the API server
    gives out the identity they hold.
    """
    service = read_or_complain(args.file)
    if service is None:
        return 1
    made = plan(Service(service), Observed(), datetime.now(UTC), settings_without_cluster())
    shown = [item for item in (*made.apply, *made.create) if item["kind"] != "ControllerRevision"]
    sys.stdout.write(to_yaml(*shown))
    return 0
