"""Baton's serving package: what runs in worker and gateway pods."""

__version__ = "0.1.0"
