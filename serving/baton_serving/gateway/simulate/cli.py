"""`baton simulate`: how policies would fare on a fleet that one does not have."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from baton_serving.errors import ConfigError
from baton_serving.gateway.admission.door import DoorConfig
from baton_serving.gateway.policies import POLICIES
from baton_serving.gateway.simulate.fleet import Shape, Simulation
from baton_serving.gateway.simulate.plot import draw
from baton_serving.gateway.simulate.report import Account, Objective, Outcome, table
from baton_serving.gateway.simulate.trace import Conversations, Trace, read_mooncake
from baton_serving.gateway.simulate.worker import Costs

MAX_WORKERS = 10_000
DEFAULT_POLICIES = ["round_robin", "power_of_two", "least_load", "cache_aware"]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        nargs="+",
        default=DEFAULT_POLICIES,
        metavar="PREFILL[:DECODE]",
        help=f"policies to compare, the same for both roles or one for each: {', '.join(POLICIES)}",
    )
    parser.add_argument("--prefill", type=int, default=4, help="prefill workers; 0: the others serve whole requests")
    parser.add_argument("--decode", type=int, default=4, help="decode workers")
    parser.add_argument("--no-events", action="store_true", help="workers do not tell what their caches hold")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated trace")
    parser.add_argument("--slo-ttft", type=float, default=Objective().ttft, help="seconds to the first token")
    parser.add_argument("--slo-tpot", type=float, default=Objective().tpot, help="seconds a token after the first")
    parser.add_argument("--max-running-requests", type=int, help="requests that the gateway lets run at once")
    parser.add_argument("--max-queued-requests", type=int, default=1024, help="requests that may wait for that")
    parser.add_argument("--queue-timeout", type=float, default=30.0, help="seconds that a request may wait for that")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes here as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the outcomes here, as .png or .svg")
    _add_trace(parser)
    _add_costs(parser)


def _add_trace(parser: ArgumentParser) -> None:
    default = Conversations()
    parser.add_argument("--trace", type=Path, help="requests in Mooncake's format instead of generated conversations")
    parser.add_argument("--speed", type=float, default=1.0, help="times that the trace is played faster")
    parser.add_argument("--requests", type=int, help=f"how many (default: the whole trace, or {default.requests})")
    parser.add_argument("--rate", type=float, default=default.rate, help="generated requests a second")
    parser.add_argument("--turns", type=int, default=default.turns, help="turns of a conversation, on average")
    parser.add_argument("--systems", type=int, default=default.systems, help="different system prompts")
    parser.add_argument("--system-tokens", type=int, default=default.system_tokens, help="tokens of each of them")
    parser.add_argument(
        "--question-tokens", type=int, default=default.question_tokens, help="tokens of a question, on average"
    )
    parser.add_argument("--answer-tokens", type=int, default=default.answer_tokens, help="tokens of an answer")
    parser.add_argument("--think", type=float, default=default.think_seconds, help="seconds between turns, on average")


def _add_costs(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("costs of a worker's steps; the defaults are an 8B model on one H200")
    for field in msgspec.structs.fields(Costs):
        name = "--cost-" + field.name.replace("_", "-")
        group.add_argument(name, type=type(field.default), default=field.default, help=COST_HELP[field.name])


COST_HELP = {
    "prefill_step": "seconds of a prefill step, whatever is in it",
    "prefill_token": "seconds more for each prompt token",
    "prefill_batch_tokens": "prompt tokens of a prefill step at most",
    "decode_step": "seconds of a decode step, whatever is in it",
    "decode_row": "seconds more for each running request",
    "decode_context_token": "seconds more for each token of their contexts",
    "transfer": "seconds that a handover takes, whatever its size",
    "transfer_token": "seconds more for each token that decode does not hold",
    "kv_tokens": "tokens of KV that fit a worker",
    "page_size": "tokens of a page",
}


def run(args: Namespace) -> int:
    """Simulate every pair of policies; returns the exit status. Raises ConfigError for what makes no sense."""
    pairs = [_pair(given) for given in args.policy]
    _check(args)
    trace = _trace(args)
    shape = Shape(args.prefill, args.decode, _costs(args), events=not args.no_events)
    door = DoorConfig(args.max_running_requests, args.max_queued_requests, args.queue_timeout)
    objective = Objective(args.slo_ttft, args.slo_tpot)
    console = Console()
    outcomes: list[Outcome] = []
    accounts: list[Account] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for prefill, decode in pairs:
            task = progress.add_task(f"{prefill}:{decode}", total=len(trace.requests))
            account = Account(objective)
            simulation = Simulation(trace, shape, prefill, decode, door, account.add)
            simulation.run(lambda done, task=task: progress.update(task, completed=done))  # type: ignore[misc]
            outcomes.append(account.outcome(prefill, decode))
            accounts.append(account)
    console.print(table(outcomes, objective))
    if args.json is not None:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(outcomes), indent=2) + b"\n")
    if args.plot is not None:
        draw(args.plot, outcomes, accounts)
    return 0


def _pair(given: str) -> tuple[str, str]:
    prefill, _, decode = given.partition(":")
    for name in (prefill, decode or prefill):
        if name not in POLICIES:
            raise ConfigError(f"--policy {given}: there is no policy {name!r}; there are {', '.join(POLICIES)}")
    return prefill, decode or prefill


def _check(args: Namespace) -> None:
    for name, least in (("decode", 1), ("prefill", 0), ("turns", 1), ("systems", 1), ("system_tokens", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}")
    if args.prefill + args.decode > MAX_WORKERS:
        raise ConfigError(f"--prefill and --decode together must not exceed {MAX_WORKERS} workers")
    for name in ("rate", "speed", "think", "question_tokens", "answer_tokens", "cost_decode_step", "cost_kv_tokens"):
        if getattr(args, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be more than 0")
    if args.requests is not None and args.requests < 1:
        raise ConfigError("--requests must be at least 1")
    if args.plot is not None and args.plot.suffix not in (".png", ".svg"):
        raise ConfigError(f"--plot {args.plot}: the name must end in .png or .svg")


def _trace(args: Namespace) -> Trace:
    if args.trace is not None:
        return read_mooncake(args.trace, args.requests, args.speed)
    conversations = Conversations(
        requests=args.requests or Conversations().requests,
        rate=args.rate * args.speed,
        turns=args.turns,
        systems=args.systems,
        system_tokens=args.system_tokens,
        question_tokens=args.question_tokens,
        answer_tokens=args.answer_tokens,
        think_seconds=args.think,
    )
    return conversations.trace(args.seed)


def _costs(args: Namespace) -> Costs:
    return Costs(**{field.name: getattr(args, f"cost_{field.name}") for field in msgspec.structs.fields(Costs)})
