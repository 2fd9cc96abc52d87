"""Several gateway processes on one port: started, watched, and ended together."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import uvloop

from baton_serving import logs
from baton_serving.gateway.admission.ledger import Ledger, shared_ledger
from baton_serving.gateway.server import GatewayConfig, GatewayProcess, bind
from baton_serving.gateway.siblings import Siblings
from baton_serving.logs import fields

log = logging.getLogger(__name__)


def run_processes(config: GatewayConfig, count: int, ready: Callable[[GatewayConfig], None]) -> int:
    """Run `count` processes until a signal; `ready` gets `config` with the ports that were taken, once all of them
    answer. Returns the exit status.

    The death of one ends all, so that whoever runs the gateway starts it anew. Raises ConfigError when a port is not
    free.
    """
    held, probes = _held(config.host, config.port, "--port"), config.probe_port
    with held as port, nullcontext() if probes is None else _held(config.host, probes, "--probe-port") as probe_port:
        return _run(replace(config, port=port, probe_port=probe_port), count, ready)


@contextmanager
def _held(host: str, port: int, flag: str) -> Iterator[int]:
    """A port that is kept, though nobody listens there yet."""
    bind(host, port, flag=flag).close()  # a stranger of the same user could share it unnoticed
    with bind(host, port, flag=flag, shared=True) as holder:
        yield holder.getsockname()[1]


def _run(config: GatewayConfig, count: int, ready: Callable[[GatewayConfig], None]) -> int:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="baton-gateway-") as folder:
        started: list[tuple[BaseProcess, Connection]] = []
        for index in range(count):
            ours, theirs = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(
                target=_child, args=(config, Path(folder), index, count, theirs), name=f"gateway-{index}"
            )
            process.start()
            theirs.close()
            started.append((process, ours))
        processes = [process for process, _ in started]
        ending = _Ending(processes)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ending.begin())
        if all(_is_ready(pipe) for _, pipe in started):
            ready(config)
            wait([process.sentinel for process in processes])
        ending.begin()
        for process in processes:
            process.join()
    codes = [process.exitcode for process in processes]
    if any(codes):
        log.error("a gateway process failed", extra=fields(exit_codes=codes))
    return 1 if any(codes) else 0


def _is_ready(pipe: Connection) -> bool:
    try:
        return bool(pipe.recv())
    except EOFError:
        return False


class _Ending:
    """Asks every process to end, once: a process that is about to end would die of a second signal."""

    def __init__(self, processes: list[BaseProcess]) -> None:
        self._processes = processes
        self._begun = False

    def begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        for process in self._processes:
            if process.is_alive():
                process.terminate()


def _child(config: GatewayConfig, folder: Path, index: int, count: int, ready: Connection) -> None:
    logs.configure(f"gateway-{index}")
    ledger = None if config.door.open and config.api_keys is None else shared_ledger(folder / "ledger", index, count)
    config = replace(config, door=config.door.share(count), bodies_limit=config.bodies_limit // count)
    uvloop.run(_serve(config, Siblings(folder, index, count), ledger, ready))


async def _serve(config: GatewayConfig, siblings: Siblings, ledger: Ledger | None, ready: Connection) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    process = GatewayProcess(config, siblings, ledger)
    probes = None if config.probe_port is None else bind(config.host, config.probe_port, shared=True)
    await process.start(bind(config.host, config.port, shared=True), probes)
    ready.send(True)
    ready.close()
    await stopped.wait()
    await process.stop()
