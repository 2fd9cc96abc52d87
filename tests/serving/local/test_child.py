from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from baton_serving.local.child import MAX_LINE, Child


async def start(code: str, lines: list[str]) -> Child:
    return await Child.start([sys.executable, "-c", code], {"X": "1"}, lines.append)


async def test_the_first_json_object_on_stdout_is_its_announcement() -> None:
    lines: list[str] = []
    code = "import os, sys; print('hello'); print('[1]'); print('{\"a\": 1}'); print('{}', os.environ['X'], end='')"
    child = await start(code, lines)
    assert await child.announcement() == {"a": 1}
    assert await child.ended() == 0
    assert lines == ["hello", "[1]", "{} 1"]


async def test_ending_without_an_announcement_is_told() -> None:
    lines: list[str] = []
    child = await start("import sys; sys.stderr.write('no\\n'); sys.exit(2)", lines)
    assert await child.announcement() is None
    assert await child.ended() == 2
    assert list(child.last_lines) == ["no"]


async def test_endless_lines_are_cut() -> None:
    lines: list[str] = []
    child = await start(f"print('x' * {5 * MAX_LINE}, flush=True)", lines)
    assert await child.ended() == 0
    assert sum(map(len, lines)) == 5 * MAX_LINE
    assert max(map(len, lines)) <= 2 * MAX_LINE


async def test_killing_the_group_takes_grandchildren_along() -> None:
    code = (
        "import json, subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print(json.dumps({'pid': p.pid}), flush=True); time.sleep(600)"
    )
    child = await start(code, [])
    facts = await child.announcement()
    assert facts is not None
    grandchild = os.pidfd_open(int(facts["pid"]))
    child.kill_group()
    assert await child.ended() == -signal.SIGKILL
    await ended(grandchild)


async def ended(pidfd: int) -> None:
    """Return when the process behind `pidfd` has ended: its descriptor becomes readable."""
    event = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, event.set)
    await event.wait()
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)


async def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from baton_serving.local.child import Child

async def main():
    code = "import time; print('{{}}', flush=True); time.sleep(600)"
    child = await Child.start([sys.executable, "-c", code], {{}}, print)
    await child.announcement()
    Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
    print("{{}}", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    parent = await start(code, [])
    await parent.announcement()
    grandchild = os.pidfd_open(int((tmp_path / "pid").read_text()))
    parent.signal(signal.SIGKILL)
    await ended(grandchild)
    await parent.ended()
