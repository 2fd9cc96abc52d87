"""The gRPC surface, through a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.api_world import OPTIONS, World, api_world, says
from support.scripted_scheduler import Script
from support.tiny_tokenizer import tiny_tokenizer

from baton_serving.api.grpc.generated import generation_pb2 as pb
from baton_serving.api.grpc.generated.generation_pb2_grpc import GenerationStub
from baton_serving.api.grpc.server import SERVICE_NAME, GrpcServer
from baton_serving.api.options import AppOptions
from baton_serving.errors import ConfigError
from baton_serving.runtime.messages import Failure, GenerateInput, HandoffTicket

TEXT = "hello world 😀"
TOKENS = [*tiny_tokenizer().encode(TEXT), 0]


@asynccontextmanager
async def serving(
    script: Callable[[GenerateInput], Script], options: AppOptions = OPTIONS
) -> AsyncIterator[tuple[World, grpc.aio.Channel]]:
    async with api_world(script, options) as world:
        server = GrpcServer(world.service, "127.0.0.1", 0)
        port = await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield world, channel
        finally:
            await server.stop(0)


async def call(channel: grpc.aio.Channel, request: pb.GenerateRequest, **options: Any) -> list[pb.GenerateResponse]:
    stub = GenerationStub(channel)  # type: ignore[no-untyped-call]
    return [response async for response in stub.Generate(request, **options)]


async def failing(channel: grpc.aio.Channel, request: pb.GenerateRequest, **options: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, request, **options)
    return caught.value


@pytest.mark.parametrize("stream", [True, False])
async def test_generate(stream: bool) -> None:
    async with serving(says(TEXT, cached=3)) as (world, channel):
        request = pb.GenerateRequest(text="one two", stream=stream, rid="mine")
        request.sampling_params.n = 2
        request.sampling_params.temperature = 0.5
        request.sampling_params.stop.append("zzz")
        request.sampling_params.logit_bias[5] = -1.5
        responses = await call(channel, request)
        for index in range(2):
            mine = [response for response in responses if response.index == index]
            assert "".join(response.text for response in mine) == TEXT
            assert [token for response in mine for token in response.token_ids] == TOKENS
            assert (mine[-1].finish.kind, mine[-1].finish.token_id) == ("stop", 0)
            assert (mine[-1].completion_tokens, mine[-1].cached_tokens) == (len(TOKENS), 3)
            assert stream or len(mine) == 1
        params = world.scheduler.received[0].params
        assert (params.temperature, params.stop, params.logit_bias) == (0.5, ("zzz",), {5: -1.5})
        assert params.max_new_tokens == 128


async def test_ids_logprobs_handoff_and_resumption() -> None:
    async with serving(lambda message: Script(TOKENS[len(message.output_ids) :])) as (world, channel):
        request = pb.GenerateRequest(
            input_ids=pb.TokenIds(ids=[5, 6, 7]),
            logprobs=pb.LogprobOptions(start=1, top=2, token_ids=[9]),
            handoff=pb.Handoff(transfer_id="t", peer="w", attempt=1, receiver="d"),
            resume=[pb.TokenIds(ids=TOKENS[:2])],
            priority=4,
        )
        (response,) = await call(channel, request)
        assert list(response.token_ids) == TOKENS[2:]
        assert [entry.token_id for entry in response.prompt_logprobs] == [6, 7]
        assert [(c.token_id, c.logprob) for c in response.logprobs[0].chosen] == [(9, -0.09)]
        message = world.scheduler.received[0]
        assert (message.handoff, message.priority) == (
            HandoffTicket(transfer_id="t", peer="w", attempt=1, receiver="d"),
            4,
        )


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (pb.GenerateRequest(), "text"),
        (pb.GenerateRequest(text=""), "text"),
        (pb.GenerateRequest(input_ids=pb.TokenIds(ids=[10**6])), "input_ids"),
        (pb.GenerateRequest(text="a", sampling_params=pb.SamplingParams(temperature=float("nan"))), "temperature"),
        (pb.GenerateRequest(text="a", logprobs=pb.LogprobOptions(start=99)), "logprobs"),
    ],
)
async def test_bad_input_names_the_field(request_: pb.GenerateRequest, param: str) -> None:
    async with serving(says("ok")) as (_, channel):
        error = await failing(channel, request_)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        metadata: dict[str, object] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
        assert metadata["baton-error-param"] == param
        assert metadata["baton-error-code"] == "invalid_request_error"


async def test_failures_keep_their_kind() -> None:
    async with serving(lambda message: Script([5], Failure("queue_full", "full"))) as (_, channel):
        error = await failing(channel, pb.GenerateRequest(text="a"))
        assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")


async def test_the_calls_deadline_and_its_cancellation_abort() -> None:
    async with serving(lambda message: Script([5], None)) as (world, channel):
        error = await failing(channel, pb.GenerateRequest(text="a"), timeout=0.2)
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await world.scheduler.until(lambda: len(world.scheduler.aborted) == 1)
        stub = GenerationStub(channel)  # type: ignore[no-untyped-call]
        stream = stub.Generate(pb.GenerateRequest(text="a", stream=True))
        assert (await stream.read()).token_ids == [5]
        stream.cancel()
        await world.scheduler.until(lambda: len(world.scheduler.aborted) == 2)


async def test_the_api_key_comes_as_metadata() -> None:
    keyed = type(OPTIONS)(**{**vars(OPTIONS), "api_key": "sesame"})
    async with serving(says("ok"), keyed) as (_, channel):
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            error = await failing(channel, pb.GenerateRequest(text="a"), metadata=metadata)
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED
        assert await call(channel, pb.GenerateRequest(text="a"), metadata=(("authorization", "Bearer sesame"),))
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status


async def test_health() -> None:
    kinds = health_pb2.HealthCheckResponse
    async with serving(says("ok")) as (world, channel):
        health = health_pb2_grpc.HealthStub(channel)
        watched = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
        while (await watched.read()).status != kinds.SERVING:
            pass
        world.manager.fail_all(Failure("internal_error", "rank0 ended"))
        assert (await watched.read()).status == kinds.NOT_SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == kinds.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="other"))
        assert (await unknown.read()).status == kinds.SERVICE_UNKNOWN


async def test_a_port_in_use_is_a_mistake_of_the_caller() -> None:
    async with api_world(says("ok")) as world:
        with pytest.raises(ConfigError, match="choose another port"):
            await GrpcServer(world.service, "127.0.0.1", world.port).start()
