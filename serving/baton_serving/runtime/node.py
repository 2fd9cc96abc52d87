"""The processes of a node above 0 of a worker: its ranks, and what ties them to node 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import TracebackType
from typing import cast

import msgspec

from baton_serving.config import ServerConfig
from baton_serving.runtime.locate import locate
from baton_serving.runtime.node_messages import Welcome
from baton_serving.runtime.process import Child, ChildWatch, Told, stop_all, wait_ready

_JOIN = "baton_serving.runtime.joining:join_main"
_RANK = "baton_serving.runtime.scheduler_process:rank_main"
_LAST_WORDS = 0.5  # seconds in which the link may find out that node 0 ended first


class Node:
    """Starts, watches and stops the node's children. A context manager: leaving it stops them.

    `host` is the address at which other workers reach this node: its ranks move their pages themselves.
    """

    def __init__(self, config: ServerConfig, host: str) -> None:
        self._config = config
        self._host = host
        self._link: Child | None = None
        self._ranks: list[Child] = []
        self._watch: ChildWatch | None = None

    def __enter__(self) -> Node:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Join node 0, start the ranks, and wait until those of all nodes can serve.

        Raises ConfigError when the caller must change something, InternalError when a child died.
        """
        link = self._link = Child("link", _JOIN, self._config)
        welcome = cast("Welcome", cast("Told", link.receive()).value)
        given = locate(dataclasses.replace(self._config, model=welcome.model))
        tokenizer_path = given.model.tokenizer_path or given.model.model_path
        config = dataclasses.replace(welcome.config, given=given, tokenizer_path=tokenizer_path)
        identity = msgspec.structs.replace(welcome.identity, host=self._host)
        for tp_rank in given.nodes.ranks(given.runtime.tp_size):
            rank = Child(f"rank{tp_rank}", _RANK, given, identity, tp_rank, welcome.addresses)
            rank.tell((config, welcome.addresses))
            self._ranks.append(rank)
        waited_for = {rank.name for rank in self._ranks}

        def count(child: Child) -> None:
            waited_for.discard(child.name)
            if not waited_for and child is not link:
                link.tell(None)

        wait_ready([link, *self._ranks], on_ready=count)

    def watch(self, on_death: Callable[[str, int | None], None]) -> None:
        """Call `on_death(name, exit code)` once, from a thread of its own, when the first child ends: with 0 when the
        worker ends as it should."""
        assert self._link is not None
        self._watch = ChildWatch([self._link, *self._ranks], lambda child, code: on_death(child.name, code))

    def leave(self) -> None:
        """Have the whole worker drain and end."""
        assert self._link is not None
        self._link.ask_to_stop()

    def close(self) -> None:
        """Stop the children, the link first: with it node 0 loses this node."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._link is not None:
            self._link.stop(_LAST_WORDS)
            self._link = None
        stop_all(self._ranks)
        self._ranks.clear()
