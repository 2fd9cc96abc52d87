"""The errors of the operator.

OperatorError
└── ManifestError   a manifest is wrong: one problem per line, each naming the field and the remedy
"""

from __future__ import annotations

from collections.abc import Sequence


class OperatorError(Exception):
    """Root of the tree."""


class ManifestError(OperatorError):
    """`problems` holds one sentence per fault, each starting with the path of the field."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))
        self.problems = tuple(problems)
