"""The errors of the bootstrap server and its clients.

BootstrapError
├── Refused       the server will not have this registration as it stands: says which field and why
├── LeaseLost     the lease is no longer held: register again
├── NotFound      no live worker answers to the key
├── Ambiguous     several live workers answer to the key
├── Unreachable   no replica of the server could be asked
└── SetupError    start-up cannot go on: one line that says what to do
"""

from __future__ import annotations


class BootstrapError(Exception):
    """Root of the tree."""


class Refused(BootstrapError):
    """The registration is not acceptable; trying the same again helps only once another worker is gone."""


class LeaseLost(BootstrapError):
    """Another session took the worker's place, or the lease ran out."""


class NotFound(BootstrapError):
    """No live worker answers to the key."""


class Ambiguous(BootstrapError):
    """Several live workers answer to the key: guessing would send pages to a stranger."""


class Unreachable(BootstrapError):
    """No replica of the bootstrap server answered."""


class SetupError(BootstrapError):
    """Start-up cannot go on; the message is one line that says what to do."""
