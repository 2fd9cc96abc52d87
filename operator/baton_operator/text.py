"""YAML as we write it: keys in the order given, long text readable, the same bytes every time."""

from __future__ import annotations

from collections.abc import Mapping

import yaml


class _Dumper(yaml.SafeDumper):
    """No anchors: a value that stands in two places is written twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def to_yaml(*documents: Mapping[str, object]) -> str:
    """The documents as one YAML stream."""
    return "---\n".join(
        yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
        for document in documents
    )
