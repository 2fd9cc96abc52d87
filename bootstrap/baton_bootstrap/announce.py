"""How a process says which ports it got: one JSON line on stdout, and a file when asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


def announce(facts: Mapping[str, str | int], path: Path | None = None) -> None:
    """Write `facts` as one line to `path`, which appears whole or not at all, then print the same line."""
    line = json.dumps(dict(facts))
    if path is not None:
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(line + "\n")
        partial.replace(path)
    print(line, flush=True)
