"""The real LeaderWorkerSet controller, with its webhooks, beside a control plane."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from support.baton_processes import bound_to_parent, free_port
from support.kube.client import eventually
from support.kube.control_plane import ControlPlane

_ADMISSION = "admissionregistration.k8s.io/v1"
# As its own installation has it: only pods of LeaderWorkerSets are looked at.
_ITS_PODS = {"matchExpressions": [{"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}]}


class LeaderWorkerSetController:
    """Runs within the context, with the definition of its kind installed; its webhooks go at the end, the definition
    stays."""

    def __init__(self, plane: ControlPlane, programs: Mapping[str, Path], folder: Path) -> None:
        self._plane = plane
        self._programs = programs
        self._folder = folder
        self._port, self._health = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LeaderWorkerSetController:
        definition = str(self._programs["leaderworkersets.yaml"])
        done = self._plane.run("kubectl", "apply", "--server-side", "-f", definition)
        assert done.returncode == 0, done.stderr
        for name in ("crt", "key"):
            shutil.copyfile(self._plane.folder / f"api.{name}", self._folder / f"tls.{name}")
        config = self._folder / "config.yaml"
        config.write_text(yaml.dump(self._config()))
        command = [str(self._programs["leaderworkerset"]), "--config", str(config)]
        environment = {"KUBECONFIG": str(self._plane.admin_kubeconfig()), "PATH": "/usr/bin:/bin"}
        with (self._folder / "controller.log").open("wb") as log:
            self._process = subprocess.Popen(bound_to_parent(command), env=environment, stdout=log, stderr=log)
        try:
            eventually(self._listens, 60.0, self.log)
            for item in self._webhooks():
                self._plane.admin().create(_ADMISSION, _plural(item), "", item)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for item in self._webhooks():
            self._plane.admin().delete(_ADMISSION, _plural(item), "", item["metadata"]["name"])
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        return (self._folder / "controller.log").read_text()

    def _config(self) -> dict[str, Any]:
        return {
            "apiVersion": "config.lws.x-k8s.io/v1alpha1",
            "kind": "Configuration",
            "internalCertManagement": {"enable": False},
            "leaderElection": {"leaderElect": False},
            "metrics": {"bindAddress": "0"},
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._health}"},
            "webhook": {"host": "127.0.0.1", "port": self._port, "certDir": str(self._folder)},
        }

    def _webhooks(self) -> list[dict[str, Any]]:
        items = [
            item
            for item in yaml.safe_load_all(self._programs["leaderworkerset-webhooks.yaml"].read_text())
            if isinstance(item, dict)
        ]
        for item in items:
            for hook in item["webhooks"]:
                path = hook["clientConfig"]["service"]["path"]
                authority = base64.b64encode(self._plane.ca.read_bytes()).decode()
                hook["clientConfig"] = {"url": f"https://127.0.0.1:{self._port}{path}", "caBundle": authority}
                if path.endswith("-pod"):
                    hook["objectSelector"] = _ITS_PODS
        return json.loads(json.dumps(items))  # type: ignore[no-any-return]

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


def _plural(item: Mapping[str, Any]) -> str:
    return f"{item['kind'].lower()}s"
