"""The first process in a cluster's namespaces: control plane, DNS, the bridge between nodes, and the nodes themselves.

    unshare --mount --net --pid --fork --kill-child --mount-proc python -m support.devcluster.machine STATE LISTENER

LISTENER is the descriptor of a socket that listens outside; who connects there is led to the API server in here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import sys
import threading
from pathlib import Path

from support.devcluster import cgroups, control
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
    api = _Api(layout)
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


class _Api:
    """A few requests with all rights."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._context: ssl.SSLContext | None = None

    def get(self, path: str) -> bytes | None:
        """The body of a good answer."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, body = self._ask("GET", path, None)
            return body if status == 200 else None
        return None

    def post(self, path: str, item: object) -> bool:
        """Whether it is there now."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._ask("POST", path, json.dumps(item).encode())[0] in (201, 409)
        return False

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        if self._context is None:
            self._context = ssl.create_default_context(cafile=str(self._layout.pki("ca.crt")))
            self._context.load_cert_chain(self._layout.pki("admin.crt"), self._layout.pki("admin.key"))
        connection = http.client.HTTPSConnection("127.0.0.1", 6443, context=self._context, timeout=5)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _is_ready(api: _Api, node: str) -> bool:
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
