"""`python -m support.devcluster lacks|build|up|down|exec`: a cluster to try things in. Needs root."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from support.devcluster import cluster, needs
from support.devcluster.layout import Layout
from support.kube import binaries


def main() -> None:
    parser = argparse.ArgumentParser(prog="devcluster", description=__doc__)
    parser.add_argument("--state", type=Path, default=binaries.cache() / "cluster", help="folder of the cluster")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("lacks", help="print what this machine lacks for that")
    commands.add_parser("build", help="build programs and images")
    up = commands.add_parser("up", help="start it, and print how to talk to it")
    up.add_argument("--nodes", type=int, default=1)
    commands.add_parser("down", help="stop it and leave nothing behind")
    inside = commands.add_parser("exec", help="run a command where pods can be reached")
    inside.add_argument("words", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.command == "lacks":
        print("\n".join(needs.lacking()))
    elif arguments.command == "build":
        _build()
    elif arguments.command == "up":
        _up(arguments.state, arguments.nodes)
    elif arguments.command == "down":
        cluster.stop(arguments.state)
    else:
        _exec(arguments.state, arguments.words)


def _build() -> None:
    began = time.monotonic()
    binaries.build(binaries.find([*binaries.CONTROL_PLANE, *binaries.NODES])[1])
    programs = time.monotonic()
    cluster.build_images()
    print(f"programs in {programs - began:.1f} s, images in {time.monotonic() - programs:.1f} s", flush=True)


def _up(state: Path, nodes: int) -> None:
    _build()
    began = time.monotonic()
    layout = cluster.start(state, nodes)
    print(f"cluster ready in {time.monotonic() - began:.1f} s")
    print(f"export KUBECONFIG={layout.kubeconfig}")


def _exec(state: Path, words: list[str]) -> None:
    layout = Layout.load(state)
    os.environ["KUBECONFIG"] = str(layout.user("admin"))
    target = layout.machine.read_text()
    os.execvp("nsenter", ["nsenter", "--target", target, "--mount", "--net", "--pid", "--", *words])


if __name__ == "__main__":
    main()
