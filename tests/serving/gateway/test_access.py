"""API keys: read, renewed, and never passed on."""

from __future__ import annotations

import dataclasses
import json
import os
from argparse import ArgumentParser
from pathlib import Path

import pytest
from support.api_world import OPTIONS, api_world, says
from support.gateway_bench import answer, gateway_bench
from support.gateway_over import gateway_before
from support.http import HELLO, get, post

from baton_bootstrap.records import Role
from baton_serving.errors import ConfigError, Unauthorized
from baton_serving.gateway import cli
from baton_serving.gateway.access import KeyFile
from baton_serving.gateway.admission.ledger import Limits
from baton_serving.gateway.http.downstream import Incoming
from baton_serving.gateway.routing import RoutingConfig


def asks(authorization: str | None) -> Incoming:
    headers = {} if authorization is None else {b"authorization": authorization.encode()}
    return Incoming(b"POST", b"/v1/completions", "1.1", headers, True)


def replace(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_key_is_known_by_its_name(tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "keys"
    path.write_text("# who key\nalice sk-1\n\nbob  sk-2\nbob sk-3\n")
    keys = KeyFile(path)
    for key, name in (("sk-1", "alice"), ("sk-2", "bob"), ("sk-3", "bob")):
        incoming = asks(f"{scheme} {key}")
        assert keys.tenant(incoming) == name
        assert incoming.headers == {}
    for wrong in (None, "", f"{scheme} sk-4", f"{scheme} sk", f"{scheme} sk-11", f"{scheme}", "Basic sk-1", "sk-1"):
        with pytest.raises(Unauthorized):
            keys.tenant(asks(wrong))


def test_keys_are_renewed_and_bad_ones_left(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alice sk-1\n")
    keys = KeyFile(path)
    assert not keys.refresh()
    replace(path, "alice sk-1 more\n")
    assert not keys.refresh()
    assert keys.tenant(asks("Bearer sk-1")) == "alice"
    replace(path, "alice sk-2\n")
    assert keys.refresh()
    with pytest.raises(Unauthorized):
        keys.tenant(asks("Bearer sk-1"))
    assert keys.tenant(asks("Bearer sk-2")) == "alice"


def test_a_mounted_secret(tmp_path: Path) -> None:
    """Kubernetes renews one by changing the link `..data`."""
    for version, key in (("..1", "sk-1"), ("..2", "sk-2")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "alice").write_text(key + "\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "alice").symlink_to("..data/alice")
    keys = KeyFile(tmp_path)
    assert keys.tenant(asks("Bearer sk-1")) == "alice"
    (tmp_path / "..new").symlink_to("..2")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    assert keys.refresh()
    assert keys.tenant(asks("Bearer sk-2")) == "alice"


def test_a_key_of_a_mounted_secret_is_renewed_without_a_gap(tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("sk-1 requests=2\nsk-2 requests=2\n")
    keys = KeyFile(tmp_path)
    assert [keys.tenant(asks(f"Bearer {key}")) for key in ("sk-1", "sk-2")] == ["alice", "alice"]
    assert keys.limits("alice") == Limits(requests=2)
    (tmp_path / "alice").write_text("sk-1\nsk-2 requests=2\n")
    with pytest.raises(ConfigError, match="the lines of alice have different limits"):
        KeyFile(tmp_path)


def test_a_name_may_have_limits_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alice sk-1 requests=3 tokens-per-minute=600\nbob sk-2\nbob sk-3\ncarol sk-4 requests=1\n")
    keys = KeyFile(path)
    assert keys.tenant(asks("Bearer sk-1")) == "alice"
    assert (keys.limits("alice"), keys.limits("bob")) == (Limits(3, 600), None)
    assert keys.limits("carol") == Limits(requests=1)
    replace(path, "alice sk-1 tokens-per-minute=5\n")
    assert keys.refresh()
    assert keys.limits("alice") == Limits(tokens_per_minute=5)
    path.unlink()
    path.mkdir()
    (path / "alice").write_text("sk-5 requests=2\n")
    assert keys.refresh()
    assert (keys.tenant(asks("Bearer sk-5")), keys.limits("alice")) == ("alice", Limits(requests=2))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("alice\n", "line 1 is not NAME KEY"),
        ("# all\na k requests=0\n", "line 2 is not NAME KEY"),
        ("a k tokens=1\n", "line 1 is not NAME KEY"),
        ("a k requests=1 requests=2\n", "line 1 is not NAME KEY"),
        ("a k\nb k\n", "the same key"),
        ("a k requests=1\na l\n", "the lines of a have different limits"),
        (None, "read"),
    ],
)
def test_keys_that_cannot_be_used(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match=says):
        KeyFile(tmp_path / "keys")


async def test_every_route_but_the_probes_asks_for_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alice sk-1\n")
    async with gateway_bench(RoutingConfig()) as bench:
        worker = await bench.worker("b", answer(served=True), Role.BOTH)
        async with gateway_before(worker.entry.worker.http_url, model="m", access=KeyFile(path)) as url:
            for route in ("/v1/models", "/metrics", "/v1/baton/workers", "/nowhere"):
                refused = await get(url + route)
                assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
                assert refused.headers["www-authenticate"] == "Bearer"
            assert (await post(f"{url}/v1/completions", {"model": "m"})).status_code == 401
            assert worker.calls == []
            for probe in ("/health", "/liveness", "/readiness"):
                assert (await get(url + probe)).status_code == 200
            key = {"authorization": "Bearer sk-1"}
            assert (await post(f"{url}/v1/completions", {"model": "m"}, headers=key)).json() == {"served": True}
            assert "sk-1" not in json.dumps(worker.calls[0].headers)


@pytest.mark.parametrize(("given", "status"), [("sesame", 200), ("wrong", 401), (None, 401)])
async def test_workers_with_a_key_get_the_gateways_and_never_the_clients(given: str | None, status: int) -> None:
    options = dataclasses.replace(OPTIONS, api_key="sesame")
    async with (
        api_world(says("ok"), options) as world,
        gateway_before(world.url, model="tiny", worker_key=given) as url,
    ):
        key = {"authorization": "Bearer sesame"}
        answer = await post(f"{url}/v1/chat/completions", {"model": "tiny", "messages": HELLO}, headers=key)
        assert answer.status_code == status


def test_a_workers_key_that_no_header_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "key"
    parser = ArgumentParser()
    cli.add_arguments(parser)
    args = parser.parse_args(["--worker-api-key-file", str(path)])
    for text in (None, "", "one\ntwo", "sésame"):
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match="--worker-api-key-file"):
            cli.run(args)
