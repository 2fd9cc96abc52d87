"""`baton rollout` with a namespace: what it writes into a service of a cluster, and what it shows."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.rolling_cluster import RollingCluster

from baton_operator.planner.context import PROMOTED, UNDONE
from baton_serving.cli.main import main

SERVICE = "/apis/baton.dev/v1alpha1/namespaces/prod/inferenceservices/chat"
EVENTS = "/api/v1/namespaces/prod/events"
HAPPENED = {"reason": "RolloutMoving", "message": "p-0 changes", "lastTimestamp": "2030-01-01T00:00:07Z"}


def merged(old: Any, new: Any) -> Any:
    """A JSON merge patch."""
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new
    return {**old, **{key: merged(old.get(key, {}), value) for key, value in new.items()}}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RollingCluster]:
    """A service behind as much of an API server as the command asks for."""
    cluster = RollingCluster("{model: {uri: 'pvc://models/a'}, decode: {replicas: 2}, prefill: {replicas: 2}}")
    for _ in range(20):
        cluster.round()
        cluster.live()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            listing = {"items": [HAPPENED, {**HAPPENED, "reason": "Other"}]}
            path = self.path.partition("?")[0]
            self.answer({SERVICE: cluster.service, EVENTS: listing}.get(path))

        def do_PATCH(self) -> None:
            change = json.loads(self.rfile.read(int(self.headers["content-length"])))
            before, meta = cluster.service["spec"], cluster.service["metadata"]
            assert change["metadata"].pop("resourceVersion") == meta["resourceVersion"]
            cluster.service = merged(cluster.service, change)
            cluster.service["metadata"]["generation"] += before != cluster.service["spec"]
            cluster.service["metadata"]["resourceVersion"] += "1"
            self.answer(cluster.service)

        def answer(self, body: object) -> None:
            data = json.dumps(body or {"message": "not found"}).encode()
            self.send_response(200 if body else 404)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    cluster.service["metadata"]["resourceVersion"] = "1"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    url = f"http://127.0.0.1:{server.server_address[1]}"
    config = {
        "current-context": "c",
        "contexts": [context],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
    monkeypatch.setenv("KUBECONFIG", str(path))
    yield cluster
    server.shutdown()
    server.server_close()


def rollout(command: str, *words: str) -> int:
    return main(["rollout", command, "chat", "-n", "prod", *words])


def change(cluster: RollingCluster, model: str) -> None:
    version = cluster.service["metadata"]["resourceVersion"]
    cluster.edit(
        f"{{model: {{uri: 'pvc://models/{model}'}}, decode: {{replicas: 2}}, prefill: {{replicas: 2}}, "
        "rollout: {canaryPercent: 50}}"
    )
    cluster.service["metadata"]["resourceVersion"] = version


def test_status_shows_the_change_and_what_happened(cluster: RollingCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert rollout("status") == 0
    assert "Done: " in capsys.readouterr().out
    change(cluster, "b")
    assert rollout("status") == 0
    assert f"yet to look at generation {cluster.generation}" in capsys.readouterr().out
    cluster.until("Paused")
    assert rollout("status") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "promote it, or undo" in shown
    assert "2030-01-01T00:00:07Z Moving: p-0 changes" in shown
    assert "Other" not in shown
    assert rollout("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["phase"] == "Paused"


def test_pause_and_resume(cluster: RollingCluster) -> None:
    assert rollout("pause") == 0
    assert cluster.service["spec"]["rollout"]["paused"] is True
    change(cluster, "b")
    cluster.service["spec"]["rollout"]["paused"] = True
    cluster.until("Paused")
    assert rollout("resume") == 0
    assert cluster.service["spec"]["rollout"]["paused"] is False
    assert cluster.service["metadata"]["annotations"] == {PROMOTED: str(cluster.generation)}
    cluster.until("Done")


def test_undo(cluster: RollingCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert rollout("undo") == 2
    assert "nothing to undo" in capsys.readouterr().err
    change(cluster, "b")
    cluster.until("Paused")
    assert rollout("undo") == 0
    assert cluster.service["metadata"]["annotations"] == {UNDONE: str(cluster.generation)}
    cluster.until("Failed")


def test_what_is_not_there_or_not_named(cluster: RollingCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", "status", "other", "-n", "prod"]) == 2
    assert "not found" in capsys.readouterr().err
    assert main(["rollout", "status", "-n", "prod"]) == 2
    assert "name the InferenceService" in capsys.readouterr().err
