"""Clients of an API under test."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai

HELLO: list[Any] = [{"role": "user", "content": "how are you?"}]


def sdk(url: str, api_key: str = "none") -> openai.AsyncOpenAI:
    """The real openai client, without its retries."""
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0)


async def post(url: str, body: object, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=20) as client:
        return await client.post(url, json=body, **options)


async def get(url: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=20) as client:
        return await client.get(url, **options)


@dataclass
class Event:
    """One server-sent event: the parsed data ("[DONE]" as it is) and id."""

    data: Any
    id: list[int] | None


async def events(url: str, body: object, **options: Any) -> list[Event]:
    """All events of a streamed answer."""
    async with httpx.AsyncClient(timeout=20) as client, client.stream("POST", url, json=body, **options) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        return [event async for event in parse(response.aiter_lines())]


async def parse(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    ident: list[int] | None = None
    async for line in lines:
        if line.startswith("id: "):
            ident = json.loads(line[4:])
        elif line.startswith("data: "):
            data = line[6:]
            yield Event(data if data == "[DONE]" else json.loads(data), ident)
        elif not line:
            ident = None
