"""What the operator makes of Secrets that it may, may not, or cannot read; and how it proves itself with them."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from aiohttp import web
from support.fake_cluster import service_of

from baton_operator.certificates.secrets import files_of
from baton_operator.controller.api_server import ApiServer
from baton_operator.controller.credentials import bootstrap_token, client_tls, with_credentials
from baton_operator.controller.resources import Resource
from baton_operator.errors import ApiError, NotFound, Refused
from baton_operator.planner import Context, Observed
from baton_operator.planner.objects import Object, ref_of
from baton_operator.rollout.health import ask_probe

NOW = datetime.now(UTC)
MUTUAL = Context(service_of("{model: {uri: 'hf://a/b'}, security: {mutualTls: true}}"))
PLAIN = Context(service_of("{model: {uri: 'hf://a/b'}}"))
TOKEN = Context(service_of("{model: {uri: 'hf://a/b'}, security: {token: {name: shared, key: value}}}"))


class Answers:
    """An API server with one answer to everything."""

    def __init__(self, answer: Object | ApiError) -> None:
        self.answer = answer

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        assert resource.kind == "Secret"
        assert name in ("shared", "chat-bootstrap-tls")
        if isinstance(self.answer, ApiError):
            raise self.answer
        return self.answer

    async def list(self, resource: Resource, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        assert resource.kind == "Secret"
        if isinstance(self.answer, ApiError):
            raise self.answer
        return []


async def look(context: Context, answer: Object | ApiError) -> Observed:
    return await with_credentials(cast(ApiServer, Answers(answer)), context, Observed(), NOW)


def secret(**data: str) -> Object:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}}


@pytest.mark.parametrize(
    ("answer", "token", "trouble"),
    [
        (secret(value="s3cret\n"), "s3cret", ""),
        (secret(other="s3cret"), "", "Secret shared has no entry value"),
        (NotFound(404, "no"), "", "there is no Secret shared"),
        (Refused(403, "no"), "", "install its chart with secrets: true"),
    ],
    ids=["there", "other_key", "absent", "forbidden"],
)
async def test_the_token_is_read_or_the_status_says_why_not(
    answer: Object | ApiError, token: str, trouble: str
) -> None:
    found = await look(TOKEN, answer)
    assert found.token == token
    assert trouble in found.token_trouble
    assert bool(trouble) == bool(found.token_trouble)
    assert "s3cret" not in repr(found)


async def test_without_the_right_there_are_no_certificates_and_other_refusals_are_errors() -> None:
    assert (await look(MUTUAL, Refused(403, "no"))).secrets is None
    for context in (MUTUAL, TOKEN):
        with pytest.raises(Refused):
            await look(context, Refused(422, "no"))


async def test_the_token_of_the_http_port_is_made_once() -> None:
    first = await look(MUTUAL, {})
    assert first.secrets is not None
    assert files_of(MUTUAL, first.secrets, "bootstrap")["operator.token"].decode() == first.token != ""
    kept = replace(first, objects={ref_of(item): item for item in first.secrets})
    assert (await with_credentials(cast(ApiServer, Answers({})), MUTUAL, kept, NOW)).token == first.token


async def test_whoever_may_read_the_secret_has_the_token_for_the_bootstrap_server() -> None:
    found = await look(MUTUAL, {})
    assert found.secrets is not None
    (held,) = [item for item in found.secrets if "operator.token" in item["data"]]  # type: ignore[operator]
    assert await bootstrap_token(cast(ApiServer, Answers(held)), MUTUAL) == found.token
    assert await bootstrap_token(cast(ApiServer, Answers(secret(value="s3cret"))), TOKEN) == "s3cret"
    assert await bootstrap_token(cast(ApiServer, Answers(NotFound(404, "no"))), PLAIN) == ""
    with pytest.raises(NotFound):
        await bootstrap_token(cast(ApiServer, Answers(NotFound(404, "no"))), TOKEN)


async def test_a_probe_is_answered_by_a_worker_that_asks_for_certificates(tmp_path: Path) -> None:
    found = await look(MUTUAL, {})
    assert found.secrets is not None
    for name, data in files_of(MUTUAL, found.secrets, "workers").items():
        (tmp_path / name).write_bytes(data)
    door = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    door.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    door.load_verify_locations(tmp_path / "ca.crt")
    door.verify_mode = ssl.CERT_REQUIRED

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "Paris"}}]})

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=door)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with aiohttp.ClientSession() as session:
            url = f"https://{host}:{port}"
            assert await ask_probe(session, url, "The capital of France?", client_tls(MUTUAL, found)) == "Paris"
            assert "no answer" in await ask_probe(session, url, "The capital of France?")
    finally:
        await runner.cleanup()
