"""`Engine`: a worker inside a Python program, over the same runtime as the server, without HTTP."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from baton_serving.config import ServerConfig, config_from_values
from baton_serving.config.check import check
from baton_serving.errors import ConfigError, InternalError
from baton_serving.runtime.identity import Identity
from baton_serving.runtime.messages import Failure, Finish
from baton_serving.runtime.requests import ChoiceOutput, GenerateRequest
from baton_serving.runtime.tokenizer_manager import TokenizerManager
from baton_serving.runtime.worker import Worker, load_intake
from baton_serving.sampling.validate import NATIVE

T = TypeVar("T")
Prompt = str | Sequence[int]


class Completion(msgspec.Struct):
    """An answer, or what is there of it so far. `finish_reason` is "" until it ended."""

    text: str = ""
    token_ids: list[int] = []
    finish_reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def extend(self, output: ChoiceOutput) -> None:
        tokens = output.tokens
        self.text += output.text
        self.token_ids = [*self.token_ids, *tokens.token_ids]
        self.prompt_tokens = tokens.prompt_tokens or self.prompt_tokens
        self.cached_tokens = tokens.cached_tokens or self.cached_tokens
        self.finish_reason = "" if tokens.finish is None else finish_reason(tokens.finish)


def finish_reason(finish: Finish) -> str:
    return finish.kind


class Engine:
    """Loads a model into processes of its own and generates with it. A context manager; `shutdown` stops it.

    Keyword arguments are the worker's flags with underscores, e.g. `Engine(model_path=..., tp_size=2)`. Methods may be
    called from any thread. Raises ConfigError when the flags or the checkpoint are wrong.
    """

    def __init__(self, config: ServerConfig | None = None, **flags: object) -> None:
        given = config or config_from_values(flags)
        check(given)
        if given.nodes.node_rank > 0:
            raise ConfigError("--node-rank: an Engine is node 0; start the other nodes with baton serve")
        self._worker = Worker(given, Identity.fresh("127.0.0.1", os.getpid()))
        self._loop = asyncio.new_event_loop()
        try:
            self.facts = self._worker.start()
            self._intake, self._tokenizer = load_intake(self.facts)
        except BaseException:
            self._worker.close()
            self._loop.close()
            raise
        self._thread = threading.Thread(target=self._loop.run_forever, name="baton-engine", daemon=True)
        self._thread.start()
        self._manager = self._run(self._start_manager())
        self._worker.watch(self._on_death)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.shutdown()

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Mapping[str, object] | None = None
    ) -> Completion | list[Completion]:
        """Answer one prompt, or a list of them together. A prompt is text or token ids.

        With `n` above 1 every prompt has n answers, next to each other. Raises the BatonError that ended the request.
        """
        single = _is_single(prompts)
        batch = [prompts] if single else list(prompts)
        answers = self._run(self._gather(batch, sampling_params or {}))  # type: ignore[arg-type]
        return answers[0] if single and len(answers) == 1 else answers

    async def async_generate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Mapping[str, object] | None = None
    ) -> Completion | list[Completion]:
        """`generate` for use inside an event loop of the caller."""
        single = _is_single(prompts)
        batch = [prompts] if single else list(prompts)
        work = self._gather(batch, sampling_params or {})  # type: ignore[arg-type]
        answers = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        return answers[0] if single and len(answers) == 1 else answers

    def stream(self, prompt: Prompt, sampling_params: Mapping[str, object] | None = None) -> Iterator[ChoiceOutput]:
        """Outputs of one prompt as they come. Leaving the iterator early aborts the request."""
        received: queue.SimpleQueue[ChoiceOutput | BaseException | None] = queue.SimpleQueue()

        async def forward() -> None:
            try:
                async for output in self._outputs([prompt], sampling_params or {}, stream=True):
                    received.put(output)
                received.put(None)
            except BaseException as error:
                received.put(error)
                raise

        future = asyncio.run_coroutine_threadsafe(forward(), self._loop)
        try:
            while (item := received.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            future.cancel()

    def flush_cache(self) -> int:
        """Drop all cached KV that no request uses; returns the number of pages freed."""
        return int(self._run(self._manager.control("flush_cache"))["pages"])

    def state(self) -> dict[str, Any]:
        """Check the scheduler's books and return its figures (InternalError names a leaking owner)."""
        return self._run(self._manager.control("check"))

    def shutdown(self) -> None:
        """Stop all processes; a second call does nothing."""
        if self._loop.is_closed():
            return
        self._run(self._manager.close())
        self._worker.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._tokenizer is not None:
            self._tokenizer.close()

    async def _start_manager(self) -> TokenizerManager:
        manager = TokenizerManager(self._worker.to_scheduler, self._worker.inbox)
        manager.start()
        return manager

    async def _gather(self, prompts: Sequence[Prompt], params: Mapping[str, object]) -> list[Completion]:
        answers: dict[int, Completion] = {}
        async for output in self._outputs(prompts, params, stream=False):
            answers.setdefault(output.index, Completion()).extend(output)
        return [answers[index] for index in sorted(answers)]

    async def _outputs(
        self, prompts: Sequence[Prompt], params: Mapping[str, object], stream: bool
    ) -> AsyncIterator[ChoiceOutput]:
        tokenized, choices = await self._intake.choices(prompts, [params] * len(prompts), NATIVE)
        request = GenerateRequest(uuid.uuid4().hex, tokenized, choices, stream=stream, route="engine")
        async for output in self._manager.generate(request):
            yield output

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _on_death(self, name: str, exit_code: int | None) -> None:
        failure = Failure(InternalError.code, f"{name} ended with exit code {exit_code}")
        self._loop.call_soon_threadsafe(self._manager.fail_all, failure)


def _is_single(prompts: Prompt | Sequence[Prompt]) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
