"""The errors of the operator.

OperatorError
├── ManifestError   a manifest is wrong: one problem per line, each naming the field and the remedy
├── ApiError        the API server said no, with a status and a sentence
│   ├── NotFound    what was asked for does not exist
│   ├── Conflict    somebody else was faster: read again
│   └── Refused     the object will not be taken as it is: invalid, forbidden, over quota
├── Unreachable     no answer, or one of a server in trouble: try again later
└── NotLeading      the Lease may be another's: nothing may be written
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


class ApiError(OperatorError):
    """`status` is that of HTTP, `message` what the API server wrote for a person."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status
        self.message = message


class NotFound(ApiError):
    """What was asked for does not exist."""


class Conflict(ApiError):
    """Somebody else was faster: read again."""


class Refused(ApiError):
    """The object will not be taken as it is."""


class Unreachable(OperatorError):
    """No answer, or one of a server in trouble."""


class NotLeading(OperatorError):
    """The Lease may be another's."""
