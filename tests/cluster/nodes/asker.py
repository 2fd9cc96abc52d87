"""Runs in a pod: asks a service questions, streamed, and prints a line of JSON per answer with what became of it.

    python asker.py BASE_URL [--requests N] [--streams N] [--until FILE]

A verdict is `first` or `second` (right, as that demo model answers), `mixed` (begun by one and ended by the other),
`wrong`, or `failed` with a reason. With --until it goes on while FILE is not there.
"""

import argparse
import asyncio
import itertools
import json
import pathlib
import time
from collections.abc import Iterator

import aiohttp

SIGNATURE = " — tiny v2"
QUESTIONS = json.loads(pathlib.Path(__file__).with_name("questions.json").read_text())


def verdict(text: str, answer: str) -> str:
    if text == answer:
        return "first"
    if text == answer + SIGNATURE:
        return "second"
    return "mixed" if text.startswith(answer) and SIGNATURE.startswith(text[len(answer) :]) else "wrong"


async def ask_again(session: aiohttp.ClientSession, url: str, model: str, question: str) -> str:
    """Like OpenAI's own client: a connection that cannot be made is tried again, since nothing was sent yet.

    For longer than that client does: each try may lead to a gateway that lies behind a broken cable.
    """
    for _ in range(9):
        try:
            return await ask(session, url, model, question)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            await asyncio.sleep(0.2)
    return await ask(session, url, model, question)


async def ask(session: aiohttp.ClientSession, url: str, model: str, question: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": True, "temperature": 0}
    text, ended = "", False
    async with session.post(f"{url}/chat/completions", json={**body, "max_tokens": 60}) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {await answer.text()}")
        async for raw in answer.content:
            line = raw.decode().strip()
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise RuntimeError(line)
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    if not ended:
        raise RuntimeError(f"the stream broke off after {text!r}")
    return text


async def stream(session: aiohttp.ClientSession, arguments: argparse.Namespace, numbers: Iterator[int]) -> None:
    while (number := next(numbers)) < arguments.requests and not (arguments.until and arguments.until.exists()):
        item = QUESTIONS[number % len(QUESTIONS)]
        began = time.time()
        record: dict[str, object] = {"began": began}
        try:
            text = await ask_again(session, arguments.url, arguments.model, item["question"])
            record["verdict"] = verdict(text, item["answer"])
            if record["verdict"] in ("wrong", "mixed"):
                record["why"] = {"text": text, "answer": item["answer"]}
        except (aiohttp.ClientError, OSError, RuntimeError, TimeoutError, ValueError) as error:
            record |= {"verdict": "failed", "why": f"{type(error).__name__}: {error}"}
        print(json.dumps({**record, "seconds": time.time() - began}), flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--model", default="baton-tiny")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--until", type=pathlib.Path)
    arguments = parser.parse_args()
    numbers = itertools.count()
    timeout = aiohttp.ClientTimeout(total=180, sock_connect=2)
    connector = aiohttp.TCPConnector(force_close=True)  # a new connection each: as many clients would
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await asyncio.gather(*(stream(session, arguments, numbers) for _ in range(arguments.streams)))


asyncio.run(main())
