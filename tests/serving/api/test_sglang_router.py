"""SGLang's own router in front of two of our workers, as prefill and decode."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from support.api_world import World, api_world, says
from support.http import HELLO, get, post, sdk

from baton_serving.api.server import bind

TEXT = "hello world 😀"
READY_SECONDS = 60


def free_port() -> int:
    with bind("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
        return port


@asynccontextmanager
async def routed() -> AsyncIterator[tuple[World, World, str]]:
    """Prefill worker, decode worker and the URL of the router in front of them."""
    async with api_world(says(TEXT)) as prefill, api_world(says(TEXT)) as decode:
        port, metrics_port = free_port(), free_port()
        command = [
            *(sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation"),
            *("--prefill", prefill.url, "8998", "--decode", decode.url, "--policy", "round_robin"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
        ]
        router = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        url = f"http://127.0.0.1:{port}"
        try:
            await asyncio.wait_for(ready(url, router), READY_SECONDS)
            yield prefill, decode, url
        finally:
            if router.returncode is None:
                router.kill()
            await router.wait()


async def ready(url: str, router: asyncio.subprocess.Process) -> None:
    """Once the router has registered both workers it answers a request."""
    while router.returncode is None:
        try:
            if (await post(f"{url}/generate", {"text": "a"})).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError(f"the router ended with status {router.returncode}")


async def test_both_legs_get_the_request_and_the_client_the_decode_workers_answer() -> None:
    async with routed() as (prefill, decode, url), sdk(url) as client:
        assert [model.id for model in (await client.models.list()).data] == ["tiny"]
        for worker in (prefill, decode):
            worker.scheduler.received.clear()

        answer = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=50)
        assert answer.choices[0].message.content == TEXT
        stream = await client.completions.create(model="tiny", prompt="one", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream if chunk.choices]) == TEXT
        assert (await post(f"{url}/generate", {"text": "one", "sampling_params": {"n": 1}})).json()["text"] == TEXT
        twice = await client.chat.completions.create(model="tiny", messages=HELLO, n=2)
        assert [choice.message.content for choice in twice.choices] == [TEXT, TEXT]

        await prefill.scheduler.until(lambda: len(prefill.scheduler.received) == 5)
        tickets = [message.handoff for message in prefill.scheduler.received]
        assert all(ticket is not None and ticket.peer == "127.0.0.1:8998" for ticket in tickets)
        assert len({ticket.transfer_id for ticket in tickets if ticket is not None}) == 5
        assert {t.transfer_id for t in tickets if t} == {
            message.handoff.transfer_id for message in decode.scheduler.received if message.handoff
        }
        assert decode.scheduler.received[0].params.max_new_tokens == 50
        assert (await get(f"{url}/health")).status_code == 200
