"""A service whose pods run, and a pod beside it that asks."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml
from cluster.conftest import SYSTEM
from cluster.services import ServiceUnderTest
from support.kube.client import Cluster, Item, eventually
from support.kube.person import Person

from train import heldout

ASKER = "asker"
COMPONENT = "app.kubernetes.io/component"
_SCRIPT = Path(__file__).with_name("asker.py")
_PLACE = "/asker"
_LOOK = 1.0  # seconds between two looks that start a process each
_ANSWERS, _STOP, _ENDED = "/tmp/answers", "/tmp/stop", "/tmp/ended"


class Deployment(ServiceUnderTest):
    def __init__(self, person: Person, cluster: Cluster, namespace: str, name: str) -> None:
        super().__init__(cluster, namespace, name)
        self.person = person

    @property
    def url(self) -> str:
        """As the status gives it."""
        return str((self.get() or {})["status"]["url"])

    def pods(self, component: str = "") -> list[Item]:
        """Without what is left of evicted ones."""
        labels = f"baton.dev/service={self.name}" + (f",{COMPONENT}={component}" if component else "")
        found = self.cluster.list("v1", "pods", self.namespace, labels)
        return [pod for pod in found if pod["status"].get("phase") not in ("Failed", "Succeeded")]

    def staying(self, component: str = "") -> list[Item]:
        """Those of them that are not on their way out."""
        return [pod for pod in self.pods(component) if "deletionTimestamp" not in pod["metadata"]]

    def whole(self, count: int) -> bool:
        """Whether nothing is under way, and there are `count` pods, all of them ready."""
        pods = self.staying()
        quiet = self.is_ready() and self.condition("Progressing")["status"] == "False"
        return quiet and len(pods) == count and all(map(is_ready, pods))

    def image(self, kind: str) -> str:
        """What the operator was told to take for services that name none."""
        operator = self.cluster.get("apps/v1", "deployments", SYSTEM, "baton")
        flag = f"--{kind}-image="
        arguments = operator["spec"]["template"]["spec"]["containers"][0]["args"]
        return str(next(one.removeprefix(flag) for one in arguments if one.startswith(flag)))

    def start_client(self) -> None:
        """The gateway's image has all that the script needs, and is on every node."""
        files = {"asker.py": _SCRIPT.read_text(), "questions.json": json.dumps(questions())}
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ASKER}, "data": files}
        self.person.kubectl(
            "apply",
            "--namespace",
            self.namespace,
            "-f",
            "-",
            text=yaml.safe_dump_all([config, small_pod(ASKER, self.image("gateway"), ["sleep", "infinity"])]),
        )
        self.person.kubectl(
            "wait", "--namespace", self.namespace, f"pod/{ASKER}", "--for=condition=Ready", "--timeout=60s"
        )

    def answers(self, count: int = 4, within: float = 120.0) -> list[str]:
        """What the pod beside the service thinks of `count` answers; see `asker.py`."""
        words = ["python", f"{_PLACE}/asker.py", self.url, "--requests", str(count)]
        return [str(json.loads(line)["verdict"]) for line in self.inside(*words, within=within).splitlines()]

    def inside(self, *words: str, within: float = 120.0) -> str:
        return self.person.inside(self.namespace, ASKER, *words, within=within)

    @contextlib.contextmanager
    def load(self, streams: int = 2, url: str = "") -> Iterator[Load]:
        """Questions without a pause while the context lasts; they go on whatever happens to API server and kubelet.

        They are sent to the Service where no other `url` is given.
        """
        load = Load(self)
        script = f"{_PLACE}/asker.py {url or self.url} --streams {streams} --until {_STOP}"
        run = f"rm -f {_STOP} {_ENDED}; true > {_ANSWERS}; (python {script}; touch {_ENDED}) > {_ANSWERS} 2>&1 &"
        self.inside("sh", "-c", f"setsid sh -c '{run}'")
        try:
            load.wait_for(2)
            yield load
        finally:
            self.inside("touch", _STOP)
        eventually(lambda: not self.attempt_inside("test", "-e", _ENDED).returncode, 210.0, pause=_LOOK)

    def attempt_inside(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.person.attempt("kubectl", "exec", "--namespace", self.namespace, ASKER, "--", *words)

    def delete(self) -> None:
        self.person.kubectl(
            "delete", "inferenceservice", self.name, "--namespace", self.namespace, "--wait=false", "--ignore-not-found"
        )
        eventually(lambda: self.get() is None, 180.0, lambda: self.get(), _LOOK)


def is_ready(pod: Item) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", []))


class Load:
    """What has come of the questions so far."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def records(self) -> list[Item]:
        """Each answer's verdict, when its question was sent, how long it took, and `why` where it is not right."""
        whole = self._deployment.inside("cat", _ANSWERS).rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def count(self) -> Counter[str]:
        return Counter(record["verdict"] for record in self.records())

    def bad(self) -> list[Item]:
        return [record for record in self.records() if record["verdict"] not in ("first", "second")]

    def wait_for(self, more: int, within: float = 60.0) -> None:
        """Until there are `more` right answers than now; a time to see that the service goes on."""
        known = len(self.records())
        eventually(lambda: len(self.records()) >= known + more, within, self.count, _LOOK)

    def summary(self) -> str:
        """Answers by verdict, and how long the slowest took: who asks may have noticed that."""
        records = self.records()
        slowest = max((record["seconds"] for record in records), default=0.0)
        return f"{dict(self.count())}, the slowest in {slowest:.1f} s"


def questions(count: int = 40) -> list[dict[str, str]]:
    """Sums, with the one right answer of the first demo model."""
    source = random.Random("sums on a cluster")
    drawn = [heldout.arithmetic_prompt(source) for _ in range(count)]
    return [{"question": one.messages[0]["content"], "answer": one.reply} for one in drawn]


def small_pod(name: str, image: str, command: list[str]) -> Item:
    """A restricted pod that sees the ConfigMap of its name in the folder of its name."""
    container = {
        "name": name,
        "image": image,
        "command": command,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": name, "mountPath": f"/{name}"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            # On the first node where there are two: what is done to nodes is done to the second.
            "affinity": _first_node(),
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
                "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}],
            },
            "containers": [container],
            "volumes": [{"name": name, "configMap": {"name": name}}],
        },
    }


def _first_node() -> Item:
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"]}]}
    preferred = [{"weight": 100, "preference": term}]
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
