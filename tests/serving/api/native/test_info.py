"""What a worker says about itself."""

from __future__ import annotations

from support.api_world import CONTEXT, OPTIONS, VOCAB, api_world, says
from support.http import get, post, sdk
from support.scripted_scheduler import Script

from baton_serving import __version__
from baton_serving.runtime import liveness
from baton_serving.runtime.messages import Failure


async def test_health_follows_the_schedulers_tick() -> None:
    async with api_world(says("ok")) as world:
        assert (await get(f"{world.url}/health")).status_code == 200
        world.scheduler.ticking = False
        await world.manager.control("ready")
        await world.manager.control("ready")  # a tick that was under way has come
        world.manager.liveness._moved -= liveness.WINDOW + 1
        answer = await get(f"{world.url}/health")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_health_fails_once_a_child_died() -> None:
    async with api_world(says("ok")) as world:
        world.manager.fail_all(Failure("internal_error", "rank0 ended"))
        assert (await get(f"{world.url}/health")).status_code == 503


async def test_health_generate_makes_a_token() -> None:
    async with api_world(says("ok")) as world:
        assert (await get(f"{world.url}/health_generate")).status_code == 200
        assert world.scheduler.received[0].params.max_new_tokens == 1
        world.scheduler.script = lambda message: Script([], Failure("queue_full", "full"))
        assert (await get(f"{world.url}/health_generate")).status_code == 503


async def test_model_and_server_info() -> None:
    options = type(OPTIONS)(**{**vars(OPTIONS), "server_args": {"tp_size": 2, "disaggregation_mode": "null"}})
    async with api_world(says("ok"), options) as world:
        for path in ("/model_info", "/get_model_info"):
            info = (await get(world.url + path)).json()
            assert info["model_path"] == "models/tiny"
            assert info["is_generation"] is True
            assert (info["weight_digest"], info["weight_version"]) == ("d1ge57", "default")
            assert (info["context_length"], info["vocab_size"]) == (CONTEXT, VOCAB)
        for path in ("/server_info", "/get_server_info"):
            info = (await get(world.url + path)).json()
            assert info["served_model_name"] == "tiny"
            assert (info["tp_size"], info["version"]) == (2, __version__)


async def test_load_and_metrics_come_from_the_scheduler() -> None:
    options = type(OPTIONS)(**{**vars(OPTIONS), "page_size": 16})
    async with api_world(says("hello world"), options) as world:
        await post(f"{world.url}/generate", {"text": "a"})
        load = (await get(f"{world.url}/get_load")).json()
        assert load == [{"dp_rank": 0, "num_reqs": 3, "num_waiting_reqs": 2, "num_tokens": 48}]
        text = (await get(f"{world.url}/metrics")).text
        assert 'baton_requests_total{outcome="stop",route="/generate"} 1.0' in text
        assert "baton_requests_waiting 2.0" in text


async def test_models() -> None:
    async with api_world(says("ok")) as world, sdk(world.url) as client:
        assert [model.id for model in (await client.models.list()).data] == ["tiny"]
        assert (await client.models.retrieve("tiny")).id == "tiny"
