"""A worker process without a model, run as a script: registers as ready under `$BATON_WORKER_ID`, answers nothing.

`stub_worker.py BOOTSTRAP_ADDRESS [refuse]`: with `refuse` it ends like a command whose input is wrong.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from itertools import count

from baton_bootstrap.announce import announce
from baton_bootstrap.client import RegistrationClient
from baton_bootstrap.records import Beat, Role, State, Worker


async def main(address: str) -> None:
    name = os.environ["BATON_WORKER_ID"]
    start = time.time_ns()
    worker = Worker(
        id=name, incarnation=f"{name}-{start}", epoch=start, role=Role.BOTH, http_url="http://127.0.0.1:9", model="m"
    )
    ticks = count()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with RegistrationClient(address, worker, lambda: Beat(state=State.READY, tick=next(ticks))):
        announce({"url": worker.http_url})
        await stopped.wait()


if __name__ == "__main__":
    if sys.argv[2:] == ["refuse"]:
        print("the model is missing", file=sys.stderr)
        sys.exit(2)
    asyncio.run(main(sys.argv[1]))
