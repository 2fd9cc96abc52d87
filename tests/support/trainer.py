"""Rank 0 of a group that sends weights to a worker."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import httpx
import torch
import torch.distributed as dist

from baton_serving.model.weight_group import WeightGroup

NAME = "trainer"


class Trainer:
    """In the group with one worker of one rank for the length of a `with` block."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._group: WeightGroup

    def __enter__(self) -> Trainer:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        body = {
            "master_address": "127.0.0.1",
            "master_port": port,
            "rank_offset": 1,
            "world_size": 2,
            "group_name": NAME,
            "backend": "gloo",
        }
        with ThreadPoolExecutor() as pool:
            joined = pool.submit(self._http.post, "/init_weights_update_group", json=body)
            self._group = WeightGroup(NAME, f"127.0.0.1:{port}", 0, 2, "gloo", torch.device("cpu"), timeout=60)
            assert joined.result().json()["success"], joined.result().text
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.post("/destroy_weights_update_group", json={"group_name": NAME})
        self._group.close()

    def send(self, tensors: Mapping[str, torch.Tensor], ask: Callable[[dict[str, Any]], object]) -> None:
        """Broadcast `tensors` while `ask` has the worker receive them."""
        body = {
            "names": list(tensors),
            "dtypes": [str(tensor.dtype) for tensor in tensors.values()],
            "shapes": [list(tensor.shape) for tensor in tensors.values()],
            "group_name": NAME,
        }

        def broadcast() -> None:
            for tensor in tensors.values():
                dist.broadcast(tensor, src=0, group=self._group.group)

        sending = threading.Thread(target=broadcast)
        sending.start()
        ask(body)
        sending.join()
