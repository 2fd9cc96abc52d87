"""YAML as we write it: keys in the order given, long text readable, the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import yaml
from pydantic import JsonValue


class _Dumper(yaml.SafeDumper):
    """No anchors: a value that stands in two places is written twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def to_yaml(*documents: Mapping[str, JsonValue]) -> str:
    """The documents as one YAML stream."""
    return "---\n".join(
        yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
        for document in documents
    )


def one_per_line(problems: Iterable[str], source: str) -> str:
    """Problems as lines for a person, each with where it comes from."""
    return "\n".join(f"{source}: {problem}" for problem in problems)
