"""What a person with a kubeconfig does: kubectl, helm, a port-forward, a command in a pod."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from support.baton_processes import bound_to_parent
from support.kube.client import Cluster

_LISTENS = re.compile(r"127\.0\.0\.1:(\d+)")


class Person:
    """Every call has a limit; those that fail are an AssertionError with what was printed."""

    def __init__(self, kubeconfig: Path, programs: Mapping[str, Path]) -> None:
        self.kubeconfig = kubeconfig
        self._programs = programs
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}

    def kubectl(self, *words: str, text: str | None = None, within: float = 60.0) -> str:
        done = self.attempt("kubectl", *words, text=text, within=within)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def helm(self, *words: str, within: float = 180.0) -> str:
        done = self.attempt("helm", *words, within=within)
        assert done.returncode == 0, f"helm {' '.join(words)}: {done.stderr}"
        return done.stdout

    def attempt(
        self, program: str, *words: str, text: str | None = None, within: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """The caller looks at the exit status."""
        command = [str(self._programs[program]), *words]
        return subprocess.run(
            command,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )

    def apply(self, *items: Mapping[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(items))

    def inside(self, namespace: str, pod: str, *words: str, within: float = 60.0) -> str:
        """What a command in a pod printed."""
        return self.kubectl("exec", "--namespace", namespace, pod, "--", *words, within=within)

    def start(self, program: str, *words: str, **options: Any) -> subprocess.Popen[str]:
        """A process that ends with this one; the caller waits for it."""
        command = [str(self._programs[program]), *words]
        return subprocess.Popen(bound_to_parent(command), env=self._environment, text=True, **options)

    @contextlib.contextmanager
    def forwarded(self, namespace: str, target: str, port: int) -> Iterator[str]:
        """A base URL that leads to `target`, such as `service/NAME`."""
        with self._listening("port-forward", "--namespace", namespace, target, f":{port}") as url:
            yield url

    @contextlib.contextmanager
    def api(self) -> Iterator[Cluster]:
        """The API server with this person's rights, however the kubeconfig proves who they are."""
        with self._listening("proxy", "--port=0", "--accept-paths=.*", "--reject-methods=^$") as url:
            yield Cluster(url)

    @contextlib.contextmanager
    def _listening(self, *words: str) -> Iterator[str]:
        process = self.start("kubectl", *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = _LISTENS.search(line)
            assert found, f"kubectl {' '.join(words)}: {line}{process.stdout.read()}"
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.kill()
            process.wait()
