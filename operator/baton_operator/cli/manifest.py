"""Reading the manifest that a subcommand was given, and saying what is wrong with it."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from baton_operator.api import InferenceService, load_manifest
from baton_operator.api.fields import cluster_problems
from baton_operator.errors import ManifestError
from baton_operator.planner.context import LEADER_WORKER_SET, Settings
from baton_operator.planner.gateway import GATEWAY_API
from baton_operator.planner.shared import POD_MONITOR

# Without a cluster to ask, everything optional is taken to be there.
EVERY_API = frozenset({LEADER_WORKER_SET, GATEWAY_API, POD_MONITOR})


def add_file_argument(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, required=True, help="manifest of an InferenceService")


def read(path: Path) -> InferenceService:
    """The manifest, fit for a cluster. Raises `ManifestError`."""
    service = load_manifest(path)
    problems = list(cluster_problems(service.spec, "spec", admission=True))
    if problems:
        raise ManifestError(str(path), problems)
    return service


def read_or_complain(path: Path) -> InferenceService | None:
    """The manifest, or None after its problems were printed, one per line."""
    try:
        return read(path)
    except ManifestError as error:
        print(error, file=sys.stderr)
        return None


def settings_without_cluster() -> Settings:
    return Settings(apis=EVERY_API)
