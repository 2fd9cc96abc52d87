"""Certificates of a service's own parts: who signs them, when they are renewed, and what they look like.

`rotate` decides and is pure but for the keys that it has made; `secrets` turns Secrets into what it reads and back.
"""

from baton_operator.certificates.issue import KeyMaker
from baton_operator.certificates.rotate import Lifetimes, Stored, rotate

__all__ = ["KeyMaker", "Lifetimes", "Stored", "rotate"]
