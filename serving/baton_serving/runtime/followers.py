"""Rank 0's hold on the other ranks, and the loop those ranks run.

Commands go down one ordered socket per rank; reports come back on one socket that rank 0 reads when it waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import zmq

from baton_serving.errors import BatonError, InternalError
from baton_serving.runtime.channels import Addresses, Lock, Pull, Push
from baton_serving.runtime.commands import AnyCommand, Call, Launch, Report, Stop
from baton_serving.runtime.executor import Executor
from baton_serving.runtime.rank_sockets import RankSockets
from baton_serving.scheduling.step import StepPlan

Handlers = Mapping[str, Callable[..., Any]]


class Followers:
    """Sends commands to ranks 1 … and collects their reports. With one rank there is nobody and every call is cheap."""

    def __init__(self, sockets: RankSockets, timeout: float) -> None:
        self._pushes = sockets.commands
        self._reports = sockets.reports
        self._timeout_ms = int(timeout * 1000)
        self._calls = 0

    @property
    def count(self) -> int:
        return len(self._pushes)

    def launch(self, plan: StepPlan) -> None:
        """Have every follower launch `plan`, after whatever it was sent before."""
        for push in self._pushes:
            push.send(Launch(plan))

    def call(self, method: str, args: dict[str, Any]) -> list[Any]:
        """Run `method` on every follower and wait for the answers, in rank order (InternalError if one failed)."""
        self.tell(method, args)
        return self.collect(method)

    def tell(self, method: str, args: dict[str, Any]) -> None:
        """Have every follower run `method`; `collect` waits for it."""
        self._calls += 1
        for push in self._pushes:
            push.send(Call(self._calls, method, args))

    def collect(self, method: str) -> list[Any]:
        """Answers to the last `tell`, in rank order (InternalError if one failed or does not come)."""
        if self._reports is None:
            return []
        answers: dict[int, Any] = {}
        while len(answers) < len(self._pushes):
            if not self._reports.socket.poll(self._timeout_ms):
                raise InternalError(f"{method}: {len(self._pushes) - len(answers)} ranks did not answer in time")
            report = self._reports.recv()
            if report.id != self._calls:
                continue
            if report.error is not None:
                raise InternalError(f"{method} failed on rank {report.rank}: {report.error}")
            answers[report.rank] = report.result
        return [answers[rank] for rank in sorted(answers)]

    def stop(self) -> None:
        for push in self._pushes:
            push.send(Stop())
            push.close(linger_ms=1000)
        if self._reports is not None:
            self._reports.close()


def follow(
    executor: Executor,
    tp_rank: int,
    context: zmq.Context[zmq.Socket[bytes]],
    addresses: Addresses,
    handlers: Handlers,
    on_ready: Callable[[], None],
) -> None:
    """Obey rank 0 until it says stop. `handlers` are the methods that `Call` may name."""
    lock = Lock(addresses.key)
    commands: Pull[AnyCommand] = Pull(context, addresses.commands[tp_rank - 1], AnyCommand, lock, bind=False)
    reports: Push[Report] = Push(context, addresses.reports, lock)
    on_ready()
    try:
        while True:
            command = commands.recv()
            match command:
                case Launch(plan=plan):
                    executor.launch(plan)
                case Call(id=call, method=method, args=args):
                    reports.send(_answer(handlers, call, tp_rank, method, args))
                case Stop():
                    return
    finally:
        commands.close()
        reports.close(linger_ms=1000)


def _answer(handlers: Handlers, call: int, tp_rank: int, method: str, args: dict[str, Any]) -> Report:
    try:
        return Report(call, tp_rank, handlers[method](**args))
    except BatonError as error:
        return Report(call, tp_rank, error=error.message)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        return Report(call, tp_rank, error=f"{type(error).__name__}: {error}")
