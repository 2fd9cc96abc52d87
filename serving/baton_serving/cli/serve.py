"""`baton serve`: one worker with an OpenAI-compatible API."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from baton_serving.config import add_arguments as add_config_arguments
from baton_serving.config import config_from_args


def add_arguments(parser: ArgumentParser) -> None:
    """Every flag of the configuration tree."""
    add_config_arguments(parser)


def run(args: Namespace) -> int:
    """Serve until told to stop."""
    config = config_from_args(args)
    from baton_serving.api.serve import serve  # loads torch: only once the flags are known to be right

    return serve(config)
