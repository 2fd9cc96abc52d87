"""Which weights a worker serves, as its API process knows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServedWeights:
    """`digest` is the content digest (`system_fingerprint`), `version` a label for people, `path` its origin.

    `incarnation` is by what name the registry knows this worker with these weights.
    """

    digest: str = ""
    version: str = "default"
    path: str = ""
    incarnation: str = ""


UNKNOWN_WEIGHTS = ServedWeights()
