"""`baton operator`, with log lines like those of Baton's other processes."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace

from baton_operator.cli import operator
from baton_serving import logs


def add_arguments(parser: ArgumentParser) -> None:
    operator.add_arguments(parser)


def run(args: Namespace) -> int:
    logs.configure("operator", args.log_level)
    # It warns that its thread hears no signals: they are for us.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    return operator.run(args)
