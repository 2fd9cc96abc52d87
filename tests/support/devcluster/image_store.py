"""Images that nodes find on their disks: imported once, into one folder of containerd that the nodes link to."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from support.baton_processes import bound_to_parent
from support.devcluster.debian import Runtime
from support.devcluster.dockerfile import Config
from support.devcluster.image_archive import Archive
from support.devcluster.image_build import Built
from support.kube import binaries

PAUSE = "localhost/pause:1"
_SNAPSHOTS = "io.containerd.snapshotter.v1.overlayfs"
_BLOBS = "io.containerd.content.v1.content/blobs/sha256"


def fill(images: Mapping[str, Built], runtime: Runtime, pause: Path) -> Path:
    """The folder with these images in it, by name, and the one of the process that holds a pod's namespaces.

    It only grows while clusters link to it. When more than half of it is of images that were replaced, and nobody uses
    it, it is filled anew.
    """
    store = binaries.cache() / "images"
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        archives = [Archive(name, built) for name, built in {**images, PAUSE: _pause(pause)}.items()]
        note = store / "digests.json"
        known: dict[str, str] = json.loads(note.read_text()) if note.exists() else {}
        if missing := [archive for archive in archives if known.get(archive.name) != archive.digest]:
            with _unused(store) as unused:
                if unused and _waste(store / "containerd", archives) > 0.5:
                    shutil.rmtree(store / "containerd")
                    missing, known = archives, {}
                with _containerd(store / "containerd", runtime) as ctr:
                    for archive in missing:
                        _import(ctr, archive, runtime)
                        known[archive.name] = archive.digest
            note.write_text(json.dumps(known))
    return store / "containerd"


@contextlib.contextmanager
def in_use() -> Iterator[int]:
    """As long as the descriptor, or one inherited from it, is open what `fill` gives stays where it is."""
    store = binaries.cache() / "images"
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".used").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield lock.fileno()


@contextlib.contextmanager
def _unused(store: Path) -> Iterator[bool]:
    """Whether no cluster uses the store; none begins to meanwhile."""
    with (store / ".used").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _waste(root: Path, archives: Sequence[Archive]) -> float:
    """The part of what is stored that none of these images has."""
    blobs = root / _BLOBS
    there = sum(path.stat().st_size for path in blobs.iterdir()) if blobs.is_dir() else 0
    needed = sum({digest: size for archive in archives for digest, size in archive.layers}.values())
    return 1 - needed / there if there > needed else 0.0


def link(images: Path, root: Path) -> None:
    """Make `root` a containerd's folder with what is in `images`, whose files are shared and never written to."""
    for name in ("io.containerd.metadata.v1.bolt", _SNAPSHOTS):
        (root / name).mkdir(parents=True)
        for path in (images / name).glob("*.db"):
            shutil.copyfile(path, root / name / path.name)
    (root / _SNAPSHOTS / "snapshots").mkdir()
    for path in (images / _SNAPSHOTS / "snapshots").iterdir():
        (root / _SNAPSHOTS / "snapshots" / path.name).symlink_to(path)
    (root / _BLOBS).mkdir(parents=True)
    for path in (images / _BLOBS).iterdir():
        (root / _BLOBS / path.name).symlink_to(path)


def _pause(program: Path) -> Built:
    """An image of this one program, which may be a link, or on a file system of its own."""
    content = program.read_bytes()
    made = binaries.cache() / f"pause-{hashlib.sha256(content).hexdigest()[:16]}" / "image" / "changes"
    if not made.is_dir():
        made.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".", dir=made.parent))
        (partial / "pause").write_bytes(content)
        for path in (partial, partial / "pause"):
            path.chmod(0o755)
        partial.rename(made)
    return Built([made], Config(user="65535:65535", entrypoint=["/pause"]))


@contextlib.contextmanager
def _containerd(root: Path, runtime: Runtime) -> Iterator[list[str]]:
    """A containerd for imports alone; gives the words that its client is called with."""
    with tempfile.TemporaryDirectory(prefix="baton-images-") as scratch:
        config = Path(scratch) / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{root}"\nstate = "{scratch}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
            f'[grpc]\n  address = "{scratch}/socket"\n'
            # It would remove layers of replaced images, which clusters that run now still link to.
            '[plugins."io.containerd.gc.v1.scheduler"]\n  startup_delay = "87600h"\n  mutation_threshold = 0\n'
        )
        command = ["unshare", "--mount", "containerd", "--config", str(config)]
        process = subprocess.Popen(bound_to_parent(command), env=runtime.environment(), stderr=subprocess.DEVNULL)
        try:
            ctr = ["ctr", "--address", f"{scratch}/socket", "--namespace", "k8s.io"]
            _wait(ctr, runtime, process)
            yield ctr
        finally:
            process.terminate()
            process.wait()


def _wait(ctr: list[str], runtime: Runtime, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while subprocess.run([*ctr, "version"], env=runtime.environment(), capture_output=True, check=False).returncode:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"containerd does not start: {process.poll()}")
        time.sleep(0.05)


def _import(ctr: list[str], archive: Archive, runtime: Runtime) -> None:
    listed = [*ctr, "content", "ls", "--quiet"]
    done = subprocess.run(listed, env=runtime.environment(), check=True, capture_output=True, text=True)
    with subprocess.Popen(
        [*ctr, "image", "import", "-"],
        env=runtime.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            archive.write(process.stdin, set(done.stdout.split()))
            process.stdin.close()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
