"""From nothing to a first token: chart, manifest, pods, a right answer."""

from __future__ import annotations

import openai
from cluster.nodes.deployment import COMPONENT, Deployment, questions
from support.kube.client import labels_of


def test_the_service_has_one_pod_of_each_part_and_says_ready(quickstart: Deployment) -> None:
    pods = [labels_of(pod)[COMPONENT] for pod in quickstart.pods()]
    assert sorted(pods) == ["bootstrap", "decode", "gateway", "prefill"]
    assert all(pod["status"]["containerStatuses"][0]["restartCount"] == 0 for pod in quickstart.pods())


def test_a_pod_asks_by_the_url_of_the_status(quickstart: Deployment) -> None:
    assert quickstart.answers(4) == ["first"] * 4


def test_the_openai_client_asks_through_a_port_forward(quickstart: Deployment) -> None:
    with quickstart.person.forwarded(quickstart.namespace, "service/quickstart", 8000) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["baton-tiny"]
        for item in questions(2):
            answer = client.chat.completions.create(
                model="baton-tiny", messages=[{"role": "user", "content": item["question"]}], temperature=0
            )
            assert answer.choices[0].message.content == item["answer"]


def test_kubectl_shows_the_service_in_a_line(quickstart: Deployment) -> None:
    printed = quickstart.person.kubectl("get", "bisvc", "--namespace", quickstart.namespace, "--no-headers")
    assert printed.split()[:3] == ["quickstart", "True", "1"]
