"""Changing a worker's weights, as its API process conducts it: stage, hold new requests back, switch, probe, go on.

Until the switch the old weights serve, and whatever fails before it leaves them serving. No request decodes KV of other
weights than those it began with: by default running requests end first and new ones wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from baton_serving.errors import BatonError, InternalError, InvalidRequest, Unavailable
from baton_serving.logs import fields
from baton_serving.runtime.requests import Choice, GenerateRequest
from baton_serving.runtime.served import ServedWeights
from baton_serving.runtime.tokenizer_manager import TokenizerManager
from baton_serving.runtime.weight_source import WeightSource
from baton_serving.sampling.params import SamplingParams

log = logging.getLogger(__name__)

Mode = Literal["wait", "abort", "retract"]
PauseMode = Literal["abort", "retract", "in_place"]

STAGING_SECONDS: Final = 3600.0  # for reading a checkpoint, from the network if need be
COMMIT_SECONDS: Final = 600.0  # for copying weights to a device
RELEASE_SECONDS: Final = 5.0  # for the scheduler to let go of what ended
PROBE_SECONDS: Final = 60.0


class Staged(msgspec.Struct, frozen=True):
    """What lies ready in host memory."""

    digest: str
    bytes: int


@dataclass(frozen=True)
class Switched:
    """`seconds` is how long no step could run."""

    weights: ServedWeights
    seconds: float


class Updater:
    """One change at a time. `on_weights` hears of new weights, `on_open` whether the worker takes requests."""

    def __init__(
        self,
        manager: TokenizerManager,
        on_weights: Callable[[ServedWeights], None],
        on_open: Callable[[bool], None],
    ) -> None:
        self._manager = manager
        self._on_weights = on_weights
        self._on_open = on_open
        self._lock = asyncio.Lock()
        self._paused: PauseMode | None = None
        self.gap_seconds = 0.0  # of the last switch

    @property
    def weights(self) -> ServedWeights:
        return self._manager.weights

    async def update(self, source: WeightSource, version: str | None, mode: Mode, patience: float) -> Switched:
        """The whole change; `patience` in seconds bounds the wait for running requests.

        With "abort" running requests end at once; with "retract" they go on with the new weights, their KV computed
        again. InvalidRequest when the new weights are refused; then, as after any other BatonError, the old ones serve.
        """
        async with self._alone():
            staged = await self.stage(source)
            if staged.digest == self.weights.digest:
                await self.discard()
                return Switched(self.weights, 0.0)
            try:
                await self.hold("update", mode, patience)
                return await self.switch(source.path or self.weights.path, version)
            except BatonError:
                if self.weights.digest != staged.digest:
                    await self.discard()
                raise
            finally:
                if mode == "retract" and self._paused is None:
                    await self._manager.control("continue")
                self.release_hold("update")

    async def stage(self, source: WeightSource) -> Staged:
        """Read new weights beside those that serve (InvalidRequest names what is wrong with them)."""
        plain = msgspec.to_builtins(source)
        result = await self._manager.control("weights_stage", {"source": plain}, STAGING_SECONDS)
        return msgspec.convert(result, Staged)

    async def progress(self) -> tuple[int, int]:
        """Bytes staged, and in all."""
        state = await self._manager.control("weights_progress")
        return int(state["done"]), int(state["total"])

    async def discard(self) -> None:
        """Drop what is staged."""
        await self._manager.control("weights_discard")

    async def hold(self, name: str, mode: Mode, patience: float) -> None:
        """Let no new request in, and return when nothing runs (Unavailable when that takes longer than `patience`)."""
        self._shut(name, "the weights are being changed; try again")
        if self._paused is not None:
            return
        if mode == "retract":
            await self._manager.control("pause", {"retract": True})
            return
        if mode == "abort":
            self._manager.abort("", "the weights are being changed")
        try:
            async with asyncio.timeout(patience):
                await self._manager.wait_idle()
        except TimeoutError:
            raise Unavailable(
                f"{self._manager.open_requests} requests still ran after {patience:g} s; the weights stay as they are"
            ) from None

    def release_hold(self, name: str) -> None:
        """New requests may come again, unless somebody else holds them back."""
        self._manager.gate.open(name)
        if self._manager.gate.is_open:
            self._on_open(True)

    async def switch(self, path: str, version: str | None) -> Switched:
        """Serve what is staged. Nothing may hold KV (Unavailable). After an InternalError the worker is not fit."""
        incarnation = uuid.uuid4().hex
        call = {"incarnation": incarnation, "timeout": RELEASE_SECONDS}
        result = await self._manager.control("weights_commit", call, COMMIT_SECONDS)
        weights = ServedWeights(str(result["digest"]), version or self.weights.version, path, incarnation)
        before, self._manager.weights = self._manager.weights, weights
        self.gap_seconds = float(result["seconds"])
        log.info(
            "weights switched",
            extra=fields(before=before.digest, now=weights.digest, gap_ms=round(1000 * self.gap_seconds, 3)),
        )
        if self._paused is None:
            await self._probe()
        self.release_hold("unfit")
        self._on_weights(weights)
        return Switched(weights, self.gap_seconds)

    async def pause(self, mode: PauseMode) -> None:
        """Begin no new requests; running ones end ("abort"), give their KV back ("retract") or stand still."""
        async with self._alone():
            self._shut("pause", "generation is paused")
            self._paused = mode
            if mode == "abort":
                self._manager.abort("", "generation is paused")
                await self._manager.wait_idle()
            else:
                await self._manager.control("pause", {"retract": mode == "retract"})

    async def resume(self) -> None:
        """Go on after `pause`."""
        async with self._alone():
            if self._paused in ("retract", "in_place"):
                await self._manager.control("continue")
            self._paused = None
            self.release_hold("pause")

    async def release_memory(self, tags: list[str]) -> int:
        """Give memory back to the system; requests are refused until `resume_memory`. Returns its bytes."""
        async with self._alone():
            if self._manager.open_requests and self._paused is None:
                raise InvalidRequest("requests are running: pause generation first")
            self._shut("memory", "the worker's memory is released; resume it first", refuse=True)
            try:
                result = await self._manager.control("memory_release", {"tags": tags}, COMMIT_SECONDS)
            except BatonError:
                self.release_hold("memory")
                raise
            return int(result["bytes"])

    async def resume_memory(self, tags: list[str]) -> None:
        async with self._alone():
            await self._manager.control("memory_resume", {"tags": tags}, COMMIT_SECONDS)
            self.release_hold("memory")

    async def join(self, name: str, address: str, rank: int, world_size: int, backend: str, patience: float) -> None:
        """Join a group whose rank 0 sends weights, within `patience` seconds, as its `rank` and following."""
        async with self._alone():
            call = {"name": name, "address": address, "rank": rank, "world_size": world_size, "backend": backend}
            await self._manager.control("weights_join", {**call, "timeout": patience}, patience + 10)

    async def leave(self, name: str) -> None:
        async with self._alone():
            await self._manager.control("weights_leave", {"name": name})

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        if self._lock.locked():
            raise Unavailable("another change of this worker is under way; try again", retry_after=1)
        async with self._lock:
            yield

    def _shut(self, name: str, message: str, *, refuse: bool = False) -> None:
        self._manager.gate.close(name, message, refuse=refuse)
        self._on_open(False)

    async def _probe(self) -> None:
        """A few tokens with the new weights, before anybody else asks for some (InternalError)."""
        params = SamplingParams(max_new_tokens=4, temperature=0.0, ignore_eos=True)
        request = GenerateRequest(
            f"probe-{time.time_ns()}",
            [[0] * 8],
            [Choice(prompt=0, params=params)],
            timeout=PROBE_SECONDS,
            route="probe",
            past_gate=True,
        )
        try:
            async with aclosing(self._manager.generate(request)) as outputs:
                async for _ in outputs:
                    pass
        except BatonError as error:
            message = f"the new weights do not generate: {error.message}"
            self._shut("unfit", message, refuse=True)
            raise InternalError(message) from error
