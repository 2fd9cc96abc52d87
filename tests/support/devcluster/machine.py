"""The first process in a cluster's namespaces: control plane, DNS, the bridge between nodes, and the nodes themselves.

    unshare --mount --net --pid --fork --kill-child --mount-proc python -m support.devcluster.machine STATE LISTENER

LISTENER is the descriptor of a socket that listens outside; who connects there is led to the API server in here.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from pathlib import Path

from support.devcluster import cgroups, control
from support.devcluster.api import Api
from support.devcluster.debian import Runtime
from support.devcluster.isolation import guard_settings, own_file_system, run, set_network
from support.devcluster.layout import BRIDGE, MACHINE_ADDRESS, Layout
from support.devcluster.supervisor import Supervisor


def main() -> None:
    layout = Layout.load(Path(sys.argv[1]))
    environment = Runtime(layout.runtime).environment()
    os.environ.update(environment)
    supervisor = Supervisor(layout, environment)
    try:
        _start(layout, supervisor, socket.socket(fileno=int(sys.argv[2])))
    except (OSError, RuntimeError) as error:
        layout.failed.write_text(str(error))
        raise
    layout.ready.touch()
    supervisor.run(reap=True)


def _start(layout: Layout, supervisor: Supervisor, listener: socket.socket) -> None:
    own_file_system(layout.state / "var")
    guard_settings()
    for node in layout.nodes:
        cgroups.create(f"{layout.cgroup}/{node.name}")
    _network(layout)
    (layout.state / "Corefile").write_text(control.corefile(layout))
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    for name, command in (control.etcd(layout), control.api_server(layout)):
        supervisor.start(name, *command)
    for node in layout.nodes:
        apart = ["unshare", "--mount", "--net", "--propagation", "private", sys.executable, "-m"]
        supervisor.start(node.name, *apart, "support.devcluster.node", layout.state, node.index)
    api = Api(layout)
    supervisor.wait("the API server", lambda: api.get("/readyz") is not None)
    for name, command in control.controllers(layout):
        supervisor.start(name, *command)
    for path, item in control.dns_objects():
        supervisor.wait("DNS", lambda path=path, item=item: api.post(path, item))  # type: ignore[misc]
    for node in layout.nodes:
        supervisor.wait(f"{node.name} Ready", lambda node=node: _is_ready(api, node.name))  # type: ignore[misc]
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    supervisor.wait("the default ServiceAccount", lambda: api.get(account) is not None)


def _network(layout: Layout) -> None:
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{MACHINE_ADDRESS}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for node in layout.nodes:
        run("ip", "route", "add", node.pods, "via", node.address)
    # Nothing lies behind it; programs that look for an address to serve on want a way out.
    run("ip", "route", "add", "default", "via", "10.99.0.254")
    set_network("ipv4/ip_forward", "1")


def _is_ready(api: Api, node: str) -> bool:
    body = api.get(f"/api/v1/nodes/{node}")
    conditions = json.loads(body)["status"].get("conditions", []) if body else []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _serve(listener: socket.socket) -> None:
    while True:
        outside, _ = listener.accept()
        try:
            inside = socket.create_connection(("127.0.0.1", 6443), 5)
        except OSError:
            outside.close()
            continue
        inside.settimeout(None)
        for pair in ((outside, inside), (inside, outside)):
            threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()
