"""`baton validate -f manifest.yaml`: what the API server would say of a manifest."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from baton_operator.cli.manifest import add_file_argument, read_or_complain


def add_arguments(parser: ArgumentParser) -> None:
    add_file_argument(parser)


def run(args: Namespace) -> int:
    """Exit status 0 when the manifest is right, 1 after its problems were printed."""
    service = read_or_complain(args.file)
    if service is None:
        return 1
    print(f"{args.file}: {service.metadata.name} is valid")
    return 0
