"""Write the generated pages under docs/, or say with --check which are stale."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from baton_serving.config.docs import flags_page

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES: Mapping[str, Callable[[], str]] = {"flags.md": flags_page}


def main(check: bool) -> int:
    """Exit status 1 when `check` finds a page that differs from what would be written."""
    stale = [name for name, page in PAGES.items() if _text(DOCS / name) != page()]
    for name in stale:
        print(f"docs/{name} " + ("is stale: run make docs" if check else "written"))
        if not check:
            (DOCS / name).write_text(PAGES[name]())
    return int(check and bool(stale))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
