"""`baton`: one command, one module per subcommand, imported only when it is asked for.

A subcommand's module offers `add_arguments(parser)` and `run(args) -> exit status`. Wrong options, and anything else
that a person can put right before start, are one line on stderr and exit status 2.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from baton_serving import __version__
from baton_serving.config.parser import OneLineParser
from baton_serving.errors import ConfigError


class CommandModule(Protocol):
    """What a subcommand's module offers."""

    def add_arguments(self, parser: ArgumentParser) -> None: ...

    def run(self, args: Namespace) -> int: ...


@dataclass(frozen=True)
class Command:
    """Where a subcommand lives, and its line in the overview."""

    module: str
    help: str


COMMANDS = {
    "serve": Command("baton_serving.cli.serve", "serve a model: one worker"),
    "fetch": Command("baton_serving.cli.fetch", "bring a model from the hub into the cache folder"),
    "up": Command("baton_serving.cli.up", "run an InferenceService as local processes"),
    "rollout": Command("baton_serving.cli.rollout", "look at, and steer, how a change reaches a running service"),
    "validate": Command("baton_operator.cli.validate", "say what is wrong with a manifest"),
    "render": Command("baton_operator.cli.render", "show the Kubernetes objects that a manifest leads to"),
    "plan": Command("baton_operator.cli.plan", "show the steps and devices that a manifest, or a change of it, takes"),
    "status": Command("baton_operator.cli.status", "show how an InferenceService in a cluster is"),
    "gateway": Command("baton_serving.gateway.cli", "run the endpoint in front of all workers"),
    "operator": Command("baton_serving.cli.operator", "look after the InferenceServices of a cluster"),
    "bootstrap": Command("baton_bootstrap.cli", "run the server at which workers find each other"),
    "demo": Command("baton_serving.cli.demo", "start a worker with the demo model and ask it a few questions"),
    "warm": Command("baton_serving.cli.warm", "compile the kernels of a model ahead, so that workers start at once"),
    "bench serving": Command("baton_serving.bench.serving", "measure a running endpoint under load"),
    "bench offline": Command("baton_serving.bench.offline", "measure throughput without a server"),
    "bench one-batch": Command("baton_serving.bench.one_batch", "measure one batch, step by step"),
    "simulate": Command("baton_serving.gateway.simulate.cli", "compare routing policies on a simulated fleet"),
    "check-env": Command("baton_serving.cli.check_env", "show what this machine offers and what is missing"),
}

# What to install when a package is absent that the base install does not bring.
_REMEDIES = {
    **dict.fromkeys(("torch", "transformers", "safetensors", "tokenizers", "numpy"), "'baton[engine]'"),
    "openai": "openai",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `baton argv…` and return its exit status: 2 when the input is wrong, 130 after Ctrl-C, 141 when whoever read
    its output has gone.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        print(f"baton: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return 141


def _run(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"baton {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, rest = _split(words)
    command = COMMANDS[name]
    parser = OneLineParser(prog=f"baton {name}", description=f"{command.help.capitalize()}.")
    try:
        module = cast(CommandModule, importlib.import_module(command.module))
        module.add_arguments(parser)
        return module.run(parser.parse(rest))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _REMEDIES:
            raise
        raise ConfigError(f"{name} needs {package}: pip install {_REMEDIES[package]}") from error


def _split(words: list[str]) -> tuple[str, list[str]]:
    """Name of the subcommand, of one word or two, and its arguments."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name, words[count:]
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if group:
        raise ConfigError(f"say which one: {', '.join(f'baton {name}' for name in group)}")
    near = difflib.get_close_matches(words[0], COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else "see baton --help"
    raise ConfigError(f"there is no command {words[0]!r}; {hint}")


def usage() -> str:
    """The overview that `baton --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: baton COMMAND [options]", "", *lines, "", "baton COMMAND --help shows a command's options."]
    )


if __name__ == "__main__":
    sys.exit(main())
