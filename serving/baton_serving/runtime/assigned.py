"""A worker that follows its assignment: fetches the weights it is to serve, and goes as far with them as it is told.

Level-triggered: each turn looks at the assignment that holds now and at where the worker stands, and takes one step.
Whatever fails is reported and not tried again before the assignment changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from baton_bootstrap.records import Assignment, Goal, Phase, Progress, Role
from baton_serving.errors import BatonError, Unavailable
from baton_serving.logs import fields
from baton_serving.runtime.updater import Updater
from baton_serving.runtime.weight_source import WeightSource

log = logging.getLogger(__name__)

HOLD = "assignment"  # its name at the gate
GRACE = 0.25  # seconds after leaving the registry's ready workers in which requests already on their way are taken
PROGRESS_SECONDS = 0.5


class Assigned:
    """`hear` what is assigned; `run` follows it. `report` is called at every step with where the worker stands.

    `drain(True)` tells others to send no new work, before any is refused; `take_role` changes the worker's
    role, None to that it was started for.
    """

    def __init__(
        self,
        updater: Updater,
        report: Callable[[Progress], None],
        drain: Callable[[bool], None],
        take_role: Callable[[Role | None], None],
    ) -> None:
        self._updater = updater
        self._report = report
        self._drain = drain
        self._take_role = take_role
        self._wanted: Assignment | None = None
        self._changed = asyncio.Event()
        self._staged = ""  # digest of what lies ready
        self._staged_for = ""  # revision that it was read for
        self._held = False
        self.progress = Progress()

    def hear(self, assignment: Assignment) -> None:
        """The assignment that holds now; the same one again changes nothing."""
        if assignment != self._wanted:
            self._wanted = assignment
            self._changed.set()

    async def run(self) -> None:
        """Follow assignments until cancelled."""
        while True:
            self._changed.clear()
            wanted = self._wanted
            if wanted is None or not await self._step(wanted):
                await self._changed.wait()

    async def _step(self, wanted: Assignment) -> bool:
        """Take one step towards `wanted`; False when there is none left."""
        failed = self.progress.phase is Phase.FAILED and self.progress.revision == wanted.revision
        if wanted.goal is Goal.SERVE or failed:
            await self._settle(wanted, failed=failed)
            return False
        try:
            return await self._approach(wanted)
        except BatonError as error:
            log.warning("assignment failed", extra=fields(revision=wanted.revision, reason=error.message))
            self._say(wanted, Phase.FAILED, error=error.message)
            return True

    async def _approach(self, wanted: Assignment) -> bool:
        digest = self._updater.weights.digest
        if digest in (wanted.digest, self._staged if self._staged_for == wanted.revision else ""):
            await self._settle(wanted)
            return False
        if self._staged_for != wanted.revision:
            await self._stage(wanted)
            return True
        if wanted.goal is Goal.STAGE:
            self._let_go()
            self._say(wanted, Phase.STAGED)
            return False
        if not self._held:
            self._say(wanted, Phase.HOLDING)
            await self._hold()
            return True
        self._say(wanted, Phase.SWITCHING)
        self._take_role(wanted.takes)
        await self._updater.switch(wanted.model, wanted.revision)
        self._let_go()
        self._say(wanted, Phase.SERVING)
        return True

    async def _settle(self, wanted: Assignment, *, failed: bool = False) -> None:
        """Serve what is served, with nothing beside it."""
        if self._staged and self._staged != self._updater.weights.digest:
            await self._updater.discard()
        self._staged = self._staged_for = ""
        self._take_role(wanted.takes)
        self._let_go()
        if not failed:
            self._say(wanted, Phase.SERVING)

    async def _stage(self, wanted: Assignment) -> None:
        self._staged = self._staged_for = ""
        self._say(wanted, Phase.STAGING)
        source = WeightSource(path=wanted.model, revision=wanted.model_revision or None)
        staging = asyncio.create_task(self._updater.stage(source))
        while not (await asyncio.wait([staging], timeout=PROGRESS_SECONDS))[0]:
            done, total = await self._updater.progress()
            self._say(wanted, Phase.STAGING, done=done, total=total)
        staged = staging.result()
        if wanted.digest and staged.digest != wanted.digest:
            await self._updater.discard()
            raise Unavailable(f"{wanted.model} has the digest {staged.digest}, {wanted.digest} is assigned")
        self._staged, self._staged_for = staged.digest, wanted.revision
        self._say(wanted, Phase.STAGED, done=staged.bytes, total=staged.bytes)

    async def _hold(self) -> None:
        """Until nothing runs here any more, or another assignment comes."""
        self._drain(True)
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait([changed], timeout=GRACE)
            if changed.done():
                return
            holding = asyncio.create_task(self._updater.hold(HOLD, "wait", patience=float("inf")))
            await asyncio.wait([holding, changed], return_when=asyncio.FIRST_COMPLETED)
            self._held = holding.done()
            if self._held:
                holding.result()
            else:
                holding.cancel()
        finally:
            changed.cancel()

    def _let_go(self) -> None:
        self._held = False
        self._updater.release_hold(HOLD)
        self._drain(False)

    def _say(self, wanted: Assignment, phase: Phase, *, done: int = 0, total: int = 0, error: str = "") -> None:
        if phase is self.progress.phase and wanted.revision == self.progress.revision and not total:
            done, total = self.progress.done, self.progress.total
        progress = Progress(
            revision=wanted.revision,
            phase=phase,
            digest=self._staged or self._updater.weights.digest,
            done=done,
            total=total,
            error=error,
            gap_seconds=self._updater.gap_seconds,
        )
        if progress != self.progress:
            self.progress = progress
            self._report(msgspec.structs.replace(progress))
