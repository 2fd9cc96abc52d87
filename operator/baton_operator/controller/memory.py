"""What the last server-side apply of each object led to, so that one that would change nothing is not sent again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable

from baton_operator.planner.objects import Object, Ref, map_at, ref_of

# Parts of an object that change without anybody's wish.
_RESTLESS = ("resourceVersion", "managedFields", "generation")
_COUNTER = "deployment.kubernetes.io/revision"


class Applied:
    """Digests only, by service and object. What is not remembered is simply applied again."""

    def __init__(self) -> None:
        self._known: dict[Hashable, dict[Ref, tuple[str, str]]] = {}

    def stands(self, service: Hashable, wanted: Object, live: Object | None) -> bool:
        """Whether `live` is what came of applying `wanted` before."""
        if live is None:
            return False
        return self._known.get(service, {}).get(ref_of(wanted)) == (_digest(wanted), _digest(_lasting(live)))

    def remember(self, service: Hashable, wanted: Object, made: Object) -> None:
        """Applying `wanted` has led to `made`."""
        self._known.setdefault(service, {})[ref_of(wanted)] = (_digest(wanted), _digest(_lasting(made)))

    def forget(self, service: Hashable) -> None:
        self._known.pop(service, None)


def _lasting(item: Object) -> Object:
    metadata = {key: value for key, value in map_at(item, "metadata").items() if key not in _RESTLESS}
    metadata["annotations"] = {k: v for k, v in map_at(metadata, "annotations").items() if k != _COUNTER}
    return {**{key: value for key, value in item.items() if key != "status"}, "metadata": metadata}


def _digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()
