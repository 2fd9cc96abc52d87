"""The gRPC server: `Generate` as a stream, and the standard health service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton_serving.api.extras import Origin, generate_request
from baton_serving.api.grpc import convert
from baton_serving.api.grpc.generated import generation_pb2 as pb
from baton_serving.api.grpc.generated import generation_pb2_grpc
from baton_serving.api.http.answer import gather
from baton_serving.api.http.auth import key_matches
from baton_serving.api.state import Service
from baton_serving.errors import BatonError, ConfigError, InvalidRequest, Unauthorized
from baton_serving.runtime.requests import GenerateRequest
from baton_serving.sampling.validate import NATIVE

SERVICE_NAME: Final = "baton.generation.v1.Generation"
_HEALTH_INTERVAL: Final = 1.0  # seconds between two looks at the worker for a client that watches
_STATUS: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Context = grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]

HealthContext = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


class GrpcServer:
    """Serves on `host:port` inside the running event loop; port 0 takes a free one, which `start` returns."""

    def __init__(self, service: Service, host: str, port: int) -> None:
        limit = ("grpc.max_receive_message_length", service.options.max_body_bytes)
        self._server = grpc.aio.server(options=[limit])
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        generation_pb2_grpc.add_GenerationServicer_to_server(GenerationServicer(service), self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(service), self._server)

    async def start(self) -> int:
        """Begin to serve; the port. Raises ConfigError when the address cannot be had."""
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise ConfigError(f"--grpc-port: {self._address} cannot be listened on; choose another port") from error
        await self._server.start()
        return port

    async def stop(self, grace: float = 5.0) -> None:
        """Refuse new calls, give running ones `grace` seconds."""
        await self._server.stop(grace)


class GenerationServicer(generation_pb2_grpc.GenerationServicer):
    """Answers `Generate` from the same pipeline as the HTTP routes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def Generate(  # noqa: N802 - the name is the protocol's
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        try:
            self._authorize(context)
            wanted = await self._read(request, context)
            async with aclosing(self._service.manager.generate(wanted)) as outputs:
                if request.stream:
                    async for output in outputs:
                        yield convert.response_of(output)
                else:
                    for output in await gather(outputs):
                        yield convert.response_of(output)
        except BatonError as error:
            metadata = [("baton-error-code", error.code)]
            if isinstance(error, InvalidRequest) and error.param is not None:
                metadata.append(("baton-error-param", error.param))
            status = _STATUS.get(error.status, grpc.StatusCode.INTERNAL)
            await context.abort(status, error.message, tuple(metadata))

    def _authorize(self, context: Context) -> None:
        """The same key as for HTTP, in the call's metadata."""
        key = self._service.options.api_key
        if key is None:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        scheme, _, value = str(given).partition(" ")
        if scheme.lower() != "bearer" or not key_matches(value.strip(), key):
            raise Unauthorized("this worker needs its API key: send the metadata authorization: Bearer KEY")

    async def _read(self, request: pb.GenerateRequest, context: Context) -> GenerateRequest:
        intake = self._service.intake
        prompt, name = convert.prompt_of(request)
        dialect = replace(NATIVE, prompt_field=name)
        prompts, choices = await intake.choices([prompt], [convert.sampling_of(request.sampling_params)], dialect)
        logprobs = convert.logprobs_of(request, len(prompts[0]))
        if logprobs is not None:
            intake.check_ids(logprobs.token_ids, "logprobs")
            choices = [replace(choice, logprobs=logprobs) for choice in choices]
        remaining = context.time_remaining()
        origin = Origin(route=f"/{SERVICE_NAME}/Generate", timeout=remaining)
        fields = convert.common_of(request)
        return generate_request(origin, fields, intake, prompts, choices, stream=request.stream)


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: serving while the scheduler's tick moves and the worker is not draining. Needs no API key."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: HealthContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in ("", SERVICE_NAME):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r} here")
        return self._status()

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: HealthContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and whenever it changes; for an unknown service that it is unknown, as the protocol says."""
        if request.service not in ("", SERVICE_NAME):
            yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            return
        last = None
        while True:
            status = self._status()
            if status != last:
                yield status
                last = status
            await asyncio.sleep(_HEALTH_INTERVAL)

    def _status(self) -> health_pb2.HealthCheckResponse:
        kinds = health_pb2.HealthCheckResponse
        return kinds(status=kinds.SERVING if self._service.manager.ready else kinds.NOT_SERVING)
