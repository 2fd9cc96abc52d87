"""Calls that change a worker's weights, pause it, or lend its memory; named and shaped as SGLang's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from baton_serving.api.http.body import read_json, typed
from baton_serving.api.protocol.weights import (
    FromDiskBody,
    FromDistributedBody,
    InitGroupBody,
    LeaveGroupBody,
    MemoryBody,
    PauseBody,
    UpdateBody,
)
from baton_serving.api.state import Service, service_of
from baton_serving.errors import BatonError, Cancelled, InternalError, InvalidRequest, TooLarge
from baton_serving.runtime.updater import Mode, Switched
from baton_serving.runtime.weight_source import TensorSpec, WeightSource

T = TypeVar("T")

OCTETS: Final = "application/octet-stream"
MAX_GROUP_SECONDS: Final = 600.0


async def update_from_disk(request: Request) -> Response:
    """Serve the checkpoint `model_path`. What is wrong with it is told, and the present weights go on serving."""
    body = typed(await read_json(request, service_of(request).options.max_body_bytes), FromDiskBody)
    if not body.model_path:
        raise InvalidRequest("model_path is missing: the folder of a checkpoint, or its name on the hub", "model_path")
    source = WeightSource(path=body.model_path, load_format=body.load_format or "auto", revision=body.revision)
    return await _update(service_of(request), source, body)


async def update_from_distributed(request: Request) -> Response:
    """Receive tensors from rank 0 of a group that was joined before, and serve them; all others stay as they are."""
    body = typed(await read_json(request, service_of(request).options.max_body_bytes), FromDistributedBody)
    if not len(body.names) == len(body.dtypes) == len(body.shapes) > 0:
        raise InvalidRequest("names, dtypes and shapes must be lists of one length, an entry for each tensor", "names")
    tensors = [TensorSpec(*each) for each in zip(body.names, body.dtypes, body.shapes, strict=True)]
    source = WeightSource(group=body.group_name, tensors=tensors)
    return await _update(service_of(request), source, body)


async def update_from_tensor(request: Request) -> Response:
    """Serve the tensors in the body, a safetensors file; all others stay as they are.

    Pickled tensors, which SGLang takes here, are refused: unpickling runs whatever its sender likes.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != OCTETS:
        raise InvalidRequest(
            f"send the tensors as a safetensors file with content-type {OCTETS}, and options in the query"
        )
    query = {name: value for name, value in request.query_params.items() if name in ("weight_version", "mode")}
    body = typed(dict(query), UpdateBody)
    with tempfile.TemporaryDirectory(prefix="baton-tensors-") as folder:
        file = Path(folder) / "tensors.safetensors"
        await _receive(request, file)
        source = WeightSource(file=str(file))
        return await _update(service_of(request), source, body)


async def init_group(request: Request) -> Response:
    """Join the group in which a trainer, its rank 0, sends weights. Returns once all members are there."""
    service = service_of(request)
    body = typed(await read_json(request, service.options.max_body_bytes), InitGroupBody)
    if not 0 < body.timeout <= MAX_GROUP_SECONDS:
        raise InvalidRequest(f"timeout must be between 0 and {MAX_GROUP_SECONDS:g} seconds", "timeout")
    address = f"{body.master_address}:{body.master_port}"
    joined = service.updater.join(
        body.group_name, address, body.rank_offset, body.world_size, body.backend, body.timeout
    )
    return await _told(joined, "joined the group")


async def destroy_group(request: Request) -> Response:
    service = service_of(request)
    body = typed(await read_json(request, service.options.max_body_bytes), LeaveGroupBody)
    return await _told(service.updater.leave(body.group_name), "left the group")


async def pause(request: Request) -> Response:
    """Hold new requests back; running ones end, give their KV back and wait, or stand still, as `mode` says."""
    service = service_of(request)
    body = await _optional(request, service, PauseBody)
    await service.updater.pause(body.mode)
    return _json({"status": "ok", "message": f"generation is paused ({body.mode})"})


async def resume(request: Request) -> Response:
    """Go on after a pause."""
    await service_of(request).updater.resume()
    return _json({"status": "ok", "message": "generation goes on"})


async def release_memory(request: Request) -> Response:
    """Give the memory of KV pool and weights back to the system; says how many bytes."""
    service = service_of(request)
    body = await _optional(request, service, MemoryBody)
    freed = await service.updater.release_memory(body.tags or service.options.memory_tags)
    return _json({"success": True, "bytes": freed})


async def resume_memory(request: Request) -> Response:
    """Take that memory again."""
    service = service_of(request)
    body = await _optional(request, service, MemoryBody)
    await service.updater.resume_memory(body.tags or service.options.memory_tags)
    return _json({"success": True})


async def _optional(request: Request, service: Service, kind: type[T]) -> T:
    """The body, or all defaults when it is empty."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return kind()
    return typed(await read_json(request, service.options.max_body_bytes), kind)


async def _update(service: Service, source: WeightSource, body: UpdateBody) -> Response:
    mode: Mode = "abort" if body.abort_all_requests else body.mode
    try:
        switched = await service.updater.update(source, body.weight_version, mode, body.timeout)
    except BatonError as error:
        return _failed(error, service)
    return _json({"success": True, "message": "the new weights serve", **_figures(switched)})


def _figures(switched: Switched) -> dict[str, object]:
    weights = switched.weights
    return {
        "weight_digest": weights.digest,
        "weight_version": weights.version,
        "gap_ms": round(switched.seconds * 1000, 3),
    }


def _failed(error: BatonError, service: Service) -> Response:
    """As SGLang tells it; the digest is of what goes on serving."""
    body = {"success": False, "message": error.message, "weight_digest": service.updater.weights.digest}
    return Response(msgspec.json.encode(body), error.status, media_type="application/json")


async def _told(work: Awaitable[None], message: str) -> Response:
    try:
        await work
    except BatonError as error:
        body = {"success": False, "message": error.message}
        return Response(msgspec.json.encode(body), error.status, media_type="application/json")
    return _json({"success": True, "message": message})


async def _receive(request: Request, file: Path) -> None:
    """The body into a new file, as far as the disk has room for it."""
    declared = request.headers.get("content-length", "")
    if not (declared.isascii() and declared.isdigit()):
        raise InvalidRequest("the header content-length must say how many bytes the file has")
    free = shutil.disk_usage(file.parent).free
    if int(declared) > free:
        raise TooLarge(f"the file has {declared} bytes, there is room for {free}")
    size = 0
    try:
        with file.open("wb") as target:
            async for chunk in request.stream():
                size += len(chunk)
                if size > int(declared):
                    raise TooLarge(f"the body is longer than the {declared} bytes that it announced")
                target.write(chunk)
    except ClientDisconnect as error:
        raise Cancelled("the client went away while sending the tensors") from error
    except OSError as error:
        raise InternalError(f"the tensors could not be kept: {os.strerror(error.errno or 0)}") from error


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
