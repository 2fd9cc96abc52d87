"""etcd, kube-apiserver and kube-controller-manager on loopback, with certificates, tokens, RBAC and an audit log."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from support.baton_processes import bound_to_parent, free_port
from support.kube.client import Cluster, Item, eventually

PATIENCE = 180.0  # seconds; bounds a failing start
_CONTROLLERS = (
    *("deployment-controller", "replicaset-controller", "garbage-collector-controller", "namespace-controller"),
    *("serviceaccount-controller", "disruption-controller", "resourcequota-controller", "statefulset-controller"),
)
_AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
"""


class ControlPlane:
    """Everything it writes lies in `folder`; leaving the context ends its processes, as does the death of this one."""

    def __init__(self, folder: Path, programs: Mapping[str, Path]) -> None:
        self.folder = folder
        self._programs = programs
        self._ports = {name: free_port() for name in ("etcd", "peers", "api", "controllers")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tokens = {name: secrets.token_hex(16) for name in ("admin", "system:kube-controller-manager")}

    def __enter__(self) -> ControlPlane:
        try:
            self._write_files()
            self._start_etcd()
            self.start_api_server()
            self._start_controllers()
            self._wait("the default ServiceAccount", self._has_service_account)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._ports['api']}"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def admin(self) -> Cluster:
        """The cluster with all rights."""
        return Cluster(self.url, self.ca, self._tokens["admin"])

    def admin_kubeconfig(self) -> Path:
        return self.kubeconfig("admin", self._tokens["admin"])

    def kubeconfig(self, name: str, token: str, url: str = "") -> Path:
        """A file for `$KUBECONFIG`; `url` may name a proxy in front of the API server."""
        path = self.folder / f"{name}.kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": url or self.url, "certificate-authority": str(self.ca)}}],
            "users": [{"name": "u", "user": {"token": token}}],
        }
        path.write_text(json.dumps(config))
        return path

    def run(self, program: str, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """kubectl or helm as the administrator; the caller looks at the exit status."""
        environment = {"KUBECONFIG": str(self.admin_kubeconfig()), "HOME": str(self.folder), "PATH": "/usr/bin:/bin"}
        command = [str(self._programs[program]), *words]
        return subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, timeout=100, check=False
        )

    def audit(self) -> Iterator[dict[str, Any]]:
        """Every request that the API server has answered so far."""
        for line in (self.folder / "audit.log").read_text().splitlines():
            yield json.loads(line)

    def stop_api_server(self) -> None:
        process = self._processes.pop("kube-apiserver")
        process.send_signal(signal.SIGKILL)
        process.wait()

    def adopt_definitions(self) -> None:
        """Have the API server know every definition: the plugin that looks at owner references learns of new kinds
        twice a minute, or when it starts. One that is killed before a definition is established never establishes it.
        """
        names = "apiextensions.k8s.io/v1", "customresourcedefinitions"
        eventually(lambda: all(map(_established, self.admin().list(*names))), PATIENCE)
        self.stop_api_server()
        self.start_api_server()
        admin = self.admin()
        for item in admin.list(*names):
            version = f"{item['spec']['group']}/{item['spec']['versions'][0]['name']}"
            eventually(partial(admin.serves, version, item["spec"]["names"]["plural"]), PATIENCE)

    def start_api_server(self) -> None:
        files, address = self.folder, "127.0.0.1"
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://{address}:{self._ports['etcd']}",
            f"--secure-port={self._ports['api']}",
            f"--bind-address={address}",
            f"--tls-cert-file={files}/api.crt",
            f"--tls-private-key-file={files}/api.key",
            f"--token-auth-file={files}/tokens.csv",
            "--authorization-mode=RBAC",
            "--anonymous-auth=false",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={files}/accounts.key",
            f"--service-account-signing-key-file={files}/accounts.key",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none",
            # Some clusters have it; without a right to update finalizers, owner references are refused.
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
            f"--audit-policy-file={files}/audit.yaml",
            f"--audit-log-path={files}/audit.log",
        )
        self._wait("the API server", lambda: self._answers("/readyz"))

    def _start_etcd(self) -> None:
        clients, peers = (f"http://127.0.0.1:{self._ports[name]}" for name in ("etcd", "peers"))
        self._run(
            "etcd",
            f"--data-dir={self.folder}/etcd",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",
            "--log-level=error",
        )

    def _start_controllers(self) -> None:
        user = "system:kube-controller-manager"
        path = self.kubeconfig("controllers", self._tokens[user])
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={path}",
            f"--authentication-kubeconfig={path}",
            f"--authorization-kubeconfig={path}",
            f"--service-account-private-key-file={self.folder}/accounts.key",
            f"--root-ca-file={self.ca}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports['controllers']}",
            f"--controllers={','.join(_CONTROLLERS)}",
            "--kube-api-qps=500",  # what is measured is the operator, not their politeness
            "--kube-api-burst=1000",
        )

    def _write_files(self) -> None:
        subject = ["-subj", "/CN=baton-test", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "extendedKeyUsage=serverAuth"]
        self._openssl("req", "-x509", "-noenc", *subject, "-keyout", "ca.key", "-out", "ca.crt")
        signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:false"]
        self._openssl("req", "-x509", "-noenc", *subject, *signed, *names, "-keyout", "api.key", "-out", "api.crt")
        self._openssl("genrsa", "-out", "accounts.key", "2048")
        groups = {"admin": "system:masters"}
        rows = [f'{token},{user},{user},"{groups.get(user, "")}"\n' for user, token in self._tokens.items()]
        (self.folder / "tokens.csv").write_text("".join(rows))
        (self.folder / "audit.yaml").write_text(_AUDIT_POLICY)

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    def _run(self, program: str, *flags: str) -> None:
        with (self.folder / f"{program}.log").open("ab") as log:
            self._processes[program] = subprocess.Popen(
                bound_to_parent([str(self._programs[program]), *flags]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _answers(self, path: str) -> bool:
        try:
            return self.admin().http.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def _has_service_account(self) -> bool:
        return self.admin().find("v1", "serviceaccounts", "default", "default") is not None

    def _wait(self, what: str, holds: Any) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            for program, process in self._processes.items():
                if process.poll() is not None or time.monotonic() > end:
                    log = (self.folder / f"{program}.log").read_text(errors="replace")[-3000:]
                    raise AssertionError(f"{what} is not there; {program}: {process.poll()}\n{log}")
            time.sleep(0.05)

    def _end(self) -> None:
        for process in reversed(self._processes.values()):
            process.kill()
            process.wait()


def _established(definition: Item) -> bool:
    conditions = definition.get("status", {}).get("conditions", [])
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)
