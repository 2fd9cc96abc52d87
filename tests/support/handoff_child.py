"""A worker in a process of its own, to be killed and stopped: `python -m support.handoff_child BACKEND NAME`.

Reads one JSON list `[method, *arguments]` per line from standard input and prints what comes of it, and every event, as
one JSON object per line. The parent is `ChildWorker` in `handoff_workers.py`.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import msgspec
from support.handoff_workers import BIG, Cluster, Worker, eventually

from baton_serving.handoff.protocol import PageSpan
from baton_serving.handoff.rim import PeerAddress

_LOCK = threading.Lock()


def say(kind: str, value: object) -> None:
    with _LOCK:
        sys.stdout.write(json.dumps({"kind": kind, "value": msgspec.to_builtins(value)}) + "\n")
        sys.stdout.flush()


def watch(worker: Worker) -> None:
    while True:
        worker.woken.wait()
        worker.woken.clear()
        for event in worker.service.events():
            say(type(event).__name__, event)


def main() -> None:
    backend, name = sys.argv[1:]
    cluster = Cluster(backend)
    worker = cluster.worker(name, layout=BIG, pages=256)
    worker.fill(77)
    service = worker.service
    threading.Thread(target=watch, args=(worker,), daemon=True).start()
    say("ready", {"endpoint": service.endpoint, "incarnation": worker.incarnation})
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        obey(worker, cluster, method, arguments)


def obey(worker: Worker, cluster: Cluster, method: str, arguments: list[Any]) -> None:
    service = worker.service
    match method:
        case "meet":
            cluster.registry[arguments[0]] = PeerAddress(arguments[1], arguments[2])
        case "open" | "started" | "expect":
            getattr(service, method)(*arguments)
        case "chunk":
            service.chunk_ready(arguments[0], [PageSpan(0, arguments[2], arguments[1])])
        case "finish":
            service.finish(arguments[0], arguments[1].encode())
        case "announce":
            service.announce(arguments[0], [PageSpan(0, 0, arguments[1])], 0)
        case "clear":
            worker.pools[0].pages[arguments[0]] = 0
            say("cleared", arguments[0])
        case "landed":
            eventually(lambda: bool(worker.pools[0].pages[arguments[0]].any()))
            say("landed", arguments[0])
        case "stats":
            say("stats", service.stats())


if __name__ == "__main__":
    main()
