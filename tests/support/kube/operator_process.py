"""`baton operator` as its own process, with the rights of the chart's ServiceAccount and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import httpx
from support.baton_processes import bound_to_parent, free_port


class OperatorProcess:
    """Runs within the context. `crash` and `start` may be called in turn, as a kubelet would."""

    def __init__(self, folder: Path, kubeconfig: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.log_file = folder / "operator.log"
        self._flags = ["--host", "127.0.0.1", "--port", str(self.port), "--lease", "baton", *flags]
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "POD_NAMESPACE": "baton-system",
            "POD_NAME": "operator-0",
            "PYTHONPATH": os.pathsep.join(sys.path),
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> OperatorProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.crash()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def start(self) -> None:
        command = [sys.executable, "-m", "baton_serving.cli.main", "operator", *self._flags]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(bound_to_parent(command), env=self._environment, stdout=log, stderr=log)

    def crash(self) -> None:
        """SIGKILL: nothing is tidied up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def metric(self, name: str) -> float:
        """A sample by its name with labels, 0 while it has none."""
        lines = httpx.get(f"http://127.0.0.1:{self.port}/metrics", trust_env=False).text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def rounds(self) -> float:
        """Rounds that ended well."""
        return self.metric('baton_operator_rounds_total{outcome="done"}')

    def healthy(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False
