"""`baton status`: what it shows of a service and its workers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import StringIO
from typing import Any, cast

import pytest
from rich.console import Console
from support.fake_cluster import FakeCluster
from support.rolling_cluster import RollingCluster

from baton_operator.cli.status import look, picture
from baton_operator.controller.api_server import ApiServer
from baton_operator.controller.resources import SERVICES, Resource
from baton_operator.errors import Refused
from baton_operator.planner import Service
from baton_operator.planner.objects import Object

WORKER = {"id": "d-0", "role": "decode", "state": "ready", "weights": "w1", "running": 3, "queued_tokens": 70}


@pytest.fixture(scope="module")
def service() -> Service:
    cluster = FakeCluster("{model: {uri: 'hf://a/b'}, decode: {replicas: 2}}")
    cluster.settle()
    return Service.from_object(cluster.service)


def shown(service: Service, workers: list[Any] | None) -> str:
    console = Console(file=StringIO(), width=140)
    console.print(picture(service, workers))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return " ".join(str(text).split())


def test_it_shows_pairs_conditions_and_roles(service: Service) -> None:
    text = shown(service, [])
    assert "chat http://chat.prod.svc.cluster.local:8000/v1" in text
    assert f"1 ready pairs of version {service.status.version}" in text
    assert "Ready: True, all is as the manifest says" in text
    assert "decode │ 2 │ 2 │ 0" in text


def test_it_shows_workers_and_their_queues(service: Service) -> None:
    text = shown(service, [{**WORKER, "free_pages": 5, "total_pages": 9}])
    assert "d-0 │ decode │ ready │ w1 │ 3 │ 70 │ 5/9" in text


def test_it_says_when_workers_cannot_be_asked(service: Service) -> None:
    assert "The workers cannot be asked" in shown(service, None)


def test_a_new_service_is_shown_too() -> None:
    cluster = FakeCluster("{model: {uri: 'hf://a/b'}}")
    assert "no endpoint yet 0 ready pairs of version ?" in shown(Service.from_object(cluster.service), None)


def test_it_tells_of_a_change_under_way() -> None:
    cluster = RollingCluster("{model: {uri: 'pvc://models/a'}, rollout: {strategy: InPlace}}")
    for _ in range(20):
        cluster.round()
        cluster.live()
    stable = cluster.rollout["version"]
    cluster.edit("{model: {uri: 'pvc://models/b'}, rollout: {strategy: InPlace}}")
    cluster.until("Moving")
    text = shown(Service.from_object(cluster.service), [])
    assert f"Moving: {stable} to {cluster.rollout['version']};" in text
    assert all(f"{name} │ {stable}" in text for name in cluster.weights)


class Guarded:
    """An API server with a service whose bootstrap server asks for a token, which only some may read."""

    def __init__(self, *, may_read: bool) -> None:
        cluster = FakeCluster("{model: {uri: 'hf://a/b'}, security: {token: {name: shared, key: value}}}")
        self._service = cluster.service
        self._may_read = may_read

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        if resource == SERVICES:
            return self._service
        assert (resource.kind, name) == ("Secret", "shared")
        if not self._may_read:
            raise Refused(403, "secrets is forbidden")
        return {"data": {"value": base64.b64encode(b"s3cret").decode()}}

    async def ask(self, namespace: str, service: str, port: str, path: str, headers: Mapping[str, str]) -> Object:
        assert "authorization" not in {name.lower() for name in headers}  # the API server would keep it
        if "Bearer s3cret" not in headers.values():
            raise Refused(401, "the token is missing or wrong")
        return {"workers": [WORKER]}


async def test_workers_behind_a_token_are_shown_to_whoever_may_read_it() -> None:
    _, workers = await look(cast(ApiServer, Guarded(may_read=True)), "prod", "chat")
    assert workers == [WORKER]
    service, workers = await look(cast(ApiServer, Guarded(may_read=False)), "prod", "chat")
    assert workers is None
    assert "or read its token" in shown(service, workers)
