"""Outside the namespaces: starts the cluster's first process and tidies up when it has ended, for whatever reason.

    python -m support.devcluster.holder STATE [OWNER]

OWNER is the descriptor of a pipe: once nobody holds its other end any more, the cluster ends. So it goes with the test
run that started it, even one that was killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from support.baton_processes import bound_to_parent
from support.devcluster import cgroups
from support.devcluster.layout import Layout

_UNSHARE = (
    "unshare",
    "--mount",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation",
    "private",
)


def main() -> None:
    layout = Layout.load(Path(sys.argv[1]))
    owner = int(sys.argv[2]) if len(sys.argv) > 2 else None
    told_read, told_write = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(told_write, b"."))
    listener = socket.create_server(("127.0.0.1", layout.port))
    command = [*_UNSHARE, sys.executable, "-m", "support.devcluster.machine", str(layout.state), str(listener.fileno())]
    with layout.log("machine").open("ab") as log:
        process = subprocess.Popen(bound_to_parent(command), stdout=log, stderr=log, pass_fds=[listener.fileno()])
    listener.close()
    ended = os.pidfd_open(process.pid)
    layout.machine.write_text(str(_child_of(process.pid)))
    select.select([ended, told_read, *([] if owner is None else [owner])], [], [])
    process.kill()
    process.wait()
    tidy(layout)


def tidy(layout: Layout) -> None:
    """Removes control groups and files of a cluster whose processes are gone; logs stay when it failed."""
    cgroups.remove(layout.cgroup)
    for path in layout.state.iterdir():
        if path.name in ("log", "failed"):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _child_of(pid: int) -> int:
    """The process that `unshare` made, once it is there."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while True:
        with contextlib.suppress(FileNotFoundError):
            if found := children.read_text().split():
                return int(found[0])
        if not Path(f"/proc/{pid}").exists():
            raise RuntimeError("unshare ended at once")


if __name__ == "__main__":
    main()
