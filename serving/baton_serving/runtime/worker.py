"""The processes behind one API process: a detokenizer and one scheduler process per rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import zmq

from baton_serving.config import ResolvedConfig
from baton_serving.runtime.bootstrap_process import bootstrap_main
from baton_serving.runtime.channels import Addresses, Pull, Push
from baton_serving.runtime.detokenizer import detokenizer_main
from baton_serving.runtime.identity import Identity
from baton_serving.runtime.intake import Intake
from baton_serving.runtime.messages import ApiInput, SchedulerInput
from baton_serving.runtime.process import Child, ChildWatch, stop_all
from baton_serving.runtime.rank import RankFacts, logit_processors
from baton_serving.runtime.scheduler_process import rank_main
from baton_serving.runtime.tokenizer import Tokenizer, TokenizerSource, load_tokenizer
from baton_serving.sampling.validate import Limits

BOOTSTRAP = "bootstrap"  # the child's name


@dataclass(frozen=True)
class WorkerFacts:
    """What a started worker knows of itself, for the API and the bootstrap server."""

    config: ResolvedConfig
    rank: RankFacts


class Worker:
    """Starts, watches and stops the children of one API process. A context manager: leaving it stops them.

    Its sockets are bound before any child starts, so nothing that a child sends is lost.
    """

    def __init__(self, config: ResolvedConfig, identity: Identity) -> None:
        self.config = config
        self.identity = identity
        self._addresses = Addresses.create(config.tp_size)
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

        Raises ConfigError when the caller must change something, InternalError when a child died.
        """
        self._serve_bootstrap()
        source = tokenizer_source(self.config)
        level = self.config.given.logging.log_level
        interval = self.config.given.runtime.stream_interval
        self._children.append(Child("detokenizer", detokenizer_main, level, self._addresses, source, interval))
        for tp_rank in range(self.config.tp_size):
            self._children.append(
                Child(f"rank{tp_rank}", rank_main, self.config, self.identity, tp_rank, self._addresses)
            )
        facts = {child.name: child.wait_ready() for child in self._children if child.name != BOOTSTRAP}
        return WorkerFacts(self.config, RankFacts.from_plain(facts["rank0"]))

    def _serve_bootstrap(self) -> None:
        """A prefill worker that was given no bootstrap server brings one along."""
        given = self.config.given
        chosen = given.disaggregation
        if chosen.disaggregation_mode != "prefill" or self.config.bootstrap_addrs:
            return
        if chosen.disaggregation_transfer_backend == "fake":
            return  # it has no peers
        host, port = given.http.host, chosen.disaggregation_bootstrap_port
        server = Child(BOOTSTRAP, bootstrap_main, host, port, given.logging.log_level)
        self._children.append(server)
        port = server.wait_ready()["port"]
        self.config = dataclasses.replace(self.config, bootstrap_addrs=((self.identity.host, port),))

    def watch(self, on_death: Callable[[str, int | None], None]) -> None:
        """Call `on_death(name, exit code)` once, from a thread of its own, when the first child ends."""
        self._watch = ChildWatch(self._children, lambda child: on_death(child.name, child.process.exitcode))

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


def tokenizer_source(config: ResolvedConfig) -> TokenizerSource | None:
    """Where the tokenizer comes from; None for a worker that serves token ids only."""
    model = config.given.model
    if model.skip_tokenizer_init:
        return None
    return TokenizerSource(
        path=config.tokenizer_path,
        mode=model.tokenizer_mode,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        chat_template=config.given.api.chat_template,
    )


def load_intake(config: ResolvedConfig, facts: WorkerFacts) -> tuple[Intake, Tokenizer | None]:
    """What prompts are read with, and the tokenizer for whoever must close it."""
    source = tokenizer_source(config)
    tokenizer = None if source is None else load_tokenizer(source)
    limits = Limits(
        vocab_size=facts.rank.vocab_size,
        context_length=config.context_length,
        processors=frozenset(logit_processors(config)),
    )
    intake = Intake(
        tokenizer=tokenizer,
        limits=limits,
        preferred=config.preferred_sampling_params,
        auto_truncate=config.given.api.allow_auto_truncate,
    )
    return intake, tokenizer
