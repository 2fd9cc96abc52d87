"""A worker process without a model, run as a script: registers as ready under `$BATON_WORKER_ID`, answers nothing.

`stub_worker.py BOOTSTRAP_ADDRESS [MODEL]` follows its assignments: it "serves" whatever model it is told to, whose
digest is its name. A model whose name begins with "broken" is refused: at start like a command whose input is wrong.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from itertools import count

import msgspec

from baton_bootstrap.announce import announce
from baton_bootstrap.client import RegistrationClient
from baton_bootstrap.records import Assignment, Beat, Goal, Phase, Progress, Role, State, Worker

ROLES = {"prefill": Role.PREFILL, "decode": Role.DECODE}
DRAINING_SECONDS = 0.05


class Stub:
    """The worker's state; `hear` is called on the loop."""

    def __init__(self, address: str, model: str) -> None:
        name, start = os.environ["BATON_WORKER_ID"], time.time_ns()
        self._role = ROLES.get(name.partition("-")[0], Role.BOTH)
        self.worker = Worker(
            id=name,
            incarnation=f"{name}-{start}",
            epoch=start,
            role=self._role,
            http_url="http://127.0.0.1:9",
            model="m",
            weight_digest=model,
            process=f"{name}-{start}",
        )
        self._state = State.READY
        self._progress = Progress()
        self._ticks = count()
        self._switching: asyncio.Task[None] | None = None
        self.client = RegistrationClient(address, self.worker, self._beat, on_assignment=self.hear)

    def _beat(self) -> Beat:
        return Beat(state=self._state, tick=next(self._ticks), progress=self._progress)

    def hear(self, told: Assignment) -> None:
        if self._switching is not None and not self._switching.done():
            return
        phase, digest, error = Phase.SERVING, self.worker.weight_digest, ""
        if told.goal is not Goal.SERVE and told.model != digest:
            broken = told.model.startswith("broken")
            phase, digest = (Phase.FAILED, "") if broken else (Phase.STAGED, told.model)
            error = "the checkpoint is broken" if broken else ""
        self._become(role=Role.BOTH if told.whole else self._role)
        self._say(Progress(revision=told.revision, phase=phase, digest=digest, error=error))
        if told.goal is Goal.SWITCH and phase is Phase.STAGED:
            self._switching = asyncio.create_task(self._switch(told))

    async def _switch(self, told: Assignment) -> None:
        self._state = State.DRAINING
        self._say(Progress(revision=told.revision, phase=Phase.SWITCHING, digest=told.model))
        await asyncio.sleep(DRAINING_SECONDS)
        self._state = State.READY
        self._progress = Progress(revision=told.revision, digest=told.model, gap_seconds=0.001)
        start = time.time_ns()
        self._become(weight_digest=told.model, incarnation=f"{self.worker.id}-{start}", epoch=start)

    def _say(self, progress: Progress) -> None:
        if progress != self._progress:
            self._progress = progress
            self.client.poke()

    def _become(self, **fields: object) -> None:
        changed = msgspec.structs.replace(self.worker, **fields)
        if changed != self.worker:
            self.worker = changed
            self.client.replace(changed)


async def main(address: str, model: str) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    stub = Stub(address, model)
    async with stub.client:
        announce({"url": stub.worker.http_url})
        await stopped.wait()


if __name__ == "__main__":
    model = (sys.argv[2:] or ["w"])[0]
    if model.startswith("broken"):
        print("the model is missing", file=sys.stderr)
        sys.exit(2)
    asyncio.run(main(sys.argv[1], model))
