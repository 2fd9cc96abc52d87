"""The processes behind one API process: a detokenizer and one scheduler process per rank."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import cast

import zmq

from baton_serving.config import ResolvedConfig, ServerConfig
from baton_serving.runtime.bootstrap_access import tls_of
from baton_serving.runtime.channels import Addresses, Pull, Push
from baton_serving.runtime.identity import Identity
from baton_serving.runtime.intake import Intake
from baton_serving.runtime.locate import locate
from baton_serving.runtime.messages import ApiInput, SchedulerInput
from baton_serving.runtime.node_messages import Welcome
from baton_serving.runtime.process import Child, ChildWatch, Told, stop_all, wait_ready
from baton_serving.runtime.rank_facts import RankFacts
from baton_serving.runtime.reachable import host_port
from baton_serving.runtime.tokenizer import Tokenizer, TokenizerSource, load_tokenizer
from baton_serving.sampling.validate import Limits

# What the children run; by name, so that only they load it.
_BOOTSTRAP = "baton_serving.runtime.bootstrap_process:bootstrap_main"
_GATHER = "baton_serving.runtime.gathering:gather_main"
_DETOKENIZER = "baton_serving.runtime.detokenizer:detokenizer_main"
_RANK = "baton_serving.runtime.scheduler_process:rank_main"


@dataclass(frozen=True)
class WorkerFacts:
    """What a started worker knows of itself, for the API and the bootstrap server."""

    config: ResolvedConfig
    identity: Identity
    rank: RankFacts


class Worker:
    """Starts, watches and stops the children of one API process. A context manager: leaving it stops them.

    Its sockets are bound before any child starts, so nothing that a child sends is lost.
    """

    def __init__(self, config: ServerConfig, identity: Identity) -> None:
        """ConfigError when there is no such checkpoint, ModuleNotFoundError when no model could be loaded."""
        _require("torch", "transformers")
        self._asked = config
        self._given = locate(config)
        self._identity = identity
        self._addresses = Addresses.create(config.runtime.tp_size)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.inbox: Pull[ApiInput] = Pull(self._context, self._addresses.api, ApiInput)
        self.to_scheduler: Push[SchedulerInput] = Push(self._context, self._addresses.scheduler)
        self._children: list[Child] = []
        self._watch: ChildWatch | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self) -> WorkerFacts:
        """Start all children and wait until they can serve.

        Rank 0 decides what the configuration leaves open: it knows the machine and the model, which takes torch.
        Raises ConfigError when the caller must change something, InternalError when a child died.
        """
        self._serve_bootstrap()
        nodes, addresses = self._gather_nodes()
        given, source = self._given, tokenizer_source(self._given)
        level, interval = given.logging.log_level, given.runtime.stream_interval
        detokenizer = Child("detokenizer", _DETOKENIZER, level, self._addresses, source, interval)
        ranks = [
            Child(f"rank{tp_rank}", _RANK, given, self._identity, tp_rank, addresses)
            for tp_rank in given.nodes.ranks(given.runtime.tp_size)
        ]
        self._children += [detokenizer, *ranks]
        decided: list[ResolvedConfig] = []

        def share(_: Child, value: object) -> None:
            config, where = cast("tuple[ResolvedConfig, Addresses]", value)
            decided.append(config)
            for follower in ranks[1:]:
                follower.tell((config, where))
            for node in nodes:
                bare = dataclasses.replace(config, given=ServerConfig())
                node.tell(Welcome(bare, self._asked.model, self._identity, where))

        facts = wait_ready([*nodes, detokenizer, *ranks], share)
        return WorkerFacts(decided[0], self._identity, RankFacts.from_plain(facts["rank0"]))

    def _serve_bootstrap(self) -> None:
        """A prefill worker that was given no bootstrap server brings one along."""
        given = self._given
        chosen = given.disaggregation
        if chosen.disaggregation_mode != "prefill" or chosen.disaggregation_bootstrap_addr:
            return
        if chosen.disaggregation_transfer_backend == "fake":
            return  # it has no peers
        host, port = given.http.host, chosen.disaggregation_bootstrap_port
        server = Child("bootstrap", _BOOTSTRAP, host, port, tls_of(given), given.logging.log_level)
        self._children.append(server)
        address = host_port(self._identity.host, wait_ready([server])[server.name]["port"])
        chosen = dataclasses.replace(chosen, disaggregation_bootstrap_addr=address)
        self._given = dataclasses.replace(given, disaggregation=chosen)

    def _gather_nodes(self) -> tuple[list[Child], Addresses]:
        """Wait for the other nodes, if the worker has any: the process that ties them to this one, and where ranks
        meet."""
        if self._given.nodes.nnodes == 1:
            return [], self._addresses
        nodes = Child("nodes", _GATHER, self._asked)
        self._children.append(nodes)
        host = cast("Told", nodes.receive()).value
        return [nodes], self._addresses.over_nodes(str(host))

    def watch(self, on_death: Callable[[str, int | None], None]) -> None:
        """Call `on_death(name, exit code)` once, from a thread of its own, when the first child ends."""
        self._watch = ChildWatch(self._children, lambda child, code: on_death(child.name, code))

    def close(self, grace: float = 5.0) -> None:
        """Stop the children, at most `grace` seconds gently, and remove the sockets."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        stop_all(self._children, grace)
        self._children.clear()
        self.inbox.close()
        self.to_scheduler.close()
        self._context.term()
        self._addresses.remove()


def _require(*packages: str) -> None:
    """What the children import: told here, where it is one line and not the death of a process."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def tokenizer_source(config: ServerConfig) -> TokenizerSource | None:
    """Where the tokenizer comes from; None for a worker that serves token ids only."""
    model = config.model
    if model.skip_tokenizer_init:
        return None
    return TokenizerSource(
        path=model.tokenizer_path or model.model_path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        chat_template=config.api.chat_template,
    )


def load_intake(facts: WorkerFacts) -> tuple[Intake, Tokenizer | None]:
    """What prompts are read with, and the tokenizer for whoever must close it."""
    config = facts.config
    source = tokenizer_source(config.given)
    tokenizer = None if source is None else load_tokenizer(source)
    limits = Limits(
        vocab_size=facts.rank.vocab_size,
        context_length=config.context_length,
        processors=frozenset(facts.rank.logit_processors),
    )
    intake = Intake(
        tokenizer=tokenizer,
        limits=limits,
        preferred=config.preferred_sampling_params,
        auto_truncate=config.given.api.allow_auto_truncate,
    )
    return intake, tokenizer
