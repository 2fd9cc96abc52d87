"""What can be done to a development cluster from outside, and taken back."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Mapping

from support.devcluster.debian import Runtime
from support.devcluster.layout import Layout, Node


@contextlib.contextmanager
def held(layout: Layout, program: str, seconds: float) -> Iterator[None]:
    """The program is killed, and started again once the context has ended, after `seconds` at the earliest."""
    began = time.monotonic()
    layout.held(program).touch()
    try:
        yield
        time.sleep(max(0.0, began + seconds - time.monotonic()))
    finally:
        layout.held(program).unlink()


@contextlib.contextmanager
def cut(layout: Layout, one: Node, other: Node, seconds: float) -> Iterator[None]:
    """Nothing passes between two nodes and their pods; both still reach the API server."""
    began = time.monotonic()
    chain = "{ type filter hook forward priority 0 ; }"
    _nft(layout, "add", "table", "bridge", "cut")
    _nft(layout, "add", "chain", "bridge", "cut", "between", chain)
    for here, there in ((one, other), (other, one)):
        _nft(layout, "add", "rule", "bridge", "cut", "between", "iifname", here.name, "oifname", there.name, "drop")
    try:
        yield
        time.sleep(max(0.0, began + seconds - time.monotonic()))
    finally:
        _nft(layout, "delete", "table", "bridge", "cut")


def short_of_memory(layout: Layout, node: Node) -> contextlib.AbstractContextManager[None]:
    """The node's kubelet is told to keep nearly all memory free, and so evicts one pod after another.

    Pods that ask for no memory it refuses as soon as it is there again.
    """
    settings = {"evictionSoft": {"memory.available": "99%"}, "evictionSoftGracePeriod": {"memory.available": "1s"}}
    return _kubelet_with(layout, node, settings)


def without_memory(layout: Layout, node: Node) -> contextlib.AbstractContextManager[None]:
    """A hard limit counts as memory that the node does not have: its kubelet throws out all pods, at once."""
    return _kubelet_with(layout, node, {"evictionHard": {"memory.available": "99%"}})


@contextlib.contextmanager
def _kubelet_with(layout: Layout, node: Node, settings: Mapping[str, object]) -> Iterator[None]:
    file = layout.of(node, "kubelet.json")
    before = file.read_text()
    try:
        _restart_kubelet(layout, node, json.dumps({**json.loads(before), **settings}))
        yield
    finally:
        _restart_kubelet(layout, node, before)


def _restart_kubelet(layout: Layout, node: Node, settings: str) -> None:
    with held(layout, f"kubelet-{node.name}", 1.0):
        layout.of(node, "kubelet.json").write_text(settings)


def _nft(layout: Layout, *words: str) -> None:
    outside = ["nsenter", "--target", layout.machine.read_text(), "--net", "--"]
    own = Runtime(layout.runtime)
    subprocess.run([*outside, "nft", *words], env=own.environment(), check=True)
