"""`baton fetch`: bring a checkpoint from the Hugging Face hub or an S3 bucket into the cache folder, and say how far
it is.

It stands at the bootstrap server as a worker that starts, under the name that its pod's worker will have; gateways send
nothing to it. That it cannot reach one does not keep it from its work.
"""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from baton_bootstrap.client import RegistrationClient
from baton_bootstrap.records import Beat, Phase, Progress, Role, State, Worker
from baton_bootstrap.tls import tls_files
from baton_serving.errors import ConfigError
from baton_serving.runtime.bootstrap_access import bootstrap_token
from baton_serving.runtime.identity import Identity
from baton_serving.runtime.locate import PATTERNS, local_checkpoint
from baton_serving.runtime.s3 import SCHEME, find

_PORT = 30000  # nobody listens there yet


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="OWNER/NAME on the hub, or s3://BUCKET/PATH")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--bootstrap-addr", help="host:port of every bootstrap server, with commas; none: tell nobody")
    parser.add_argument("--host", default="127.0.0.1", help="address of this machine")
    parser.add_argument("--ssl-certfile", help="certificate (PEM) to show at the bootstrap server")
    parser.add_argument("--ssl-keyfile", help="key of the certificate")
    parser.add_argument("--ssl-ca-certs", help="authority that the bootstrap server's certificate must come from")


def run(args: Namespace) -> int:
    """Prints the folder of the checkpoint (ConfigError when it cannot be had)."""
    print(asyncio.run(_fetch(args)))
    return 0


@dataclass
class Download:
    """How many of `total` bytes are there: those of `cached` files, and what has come into `folder` since it held
    `begin` bytes. `total` is 0 before it is known."""

    folder: Path
    begin: int = 0
    cached: int = 0
    total: int = 0

    def progress(self) -> Progress:
        done = min(self.total, self.cached + max(0, size_of(self.folder) - self.begin))
        return Progress(phase=Phase.STAGING, done=done, total=self.total)


def size_of(folder: Path) -> int:
    """Bytes of the files in `folder`, which may come and go meanwhile."""
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def plan(name: str, revision: str | None) -> Download:
    """What hub or bucket say that is to be fetched; nothing where they do not answer (the download itself says why)."""
    return _plan_bucket(name) if name.startswith(SCHEME) else _plan_hub(name, revision)


def _plan_bucket(name: str) -> Download:
    checkpoint = find(name, PATTERNS)
    there = checkpoint.total if checkpoint.folder.is_dir() else 0
    return Download(checkpoint.partial, 0, there, checkpoint.total)


def _plan_hub(name: str, revision: str | None) -> Download:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folder = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"
    try:
        files = snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS), dry_run=True)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return Download(folder)
    cached = sum(file.file_size or 0 for file in files if file.is_cached)
    return Download(folder, size_of(folder), cached, sum(file.file_size or 0 for file in files))


async def _fetch(args: Namespace) -> Path:
    if not args.name.startswith(SCHEME) and args.name.count("/") != 1:
        raise ConfigError(f"{args.name} is no name on the hub; write OWNER/NAME, or s3://BUCKET/PATH")
    download = await asyncio.to_thread(plan, args.name, args.revision)
    if not args.bootstrap_addr:
        return await asyncio.to_thread(local_checkpoint, args.name, args.revision)
    tls = tls_files(args.ssl_certfile, args.ssl_keyfile, args.ssl_ca_certs)
    identity = Identity.fresh(args.host, _PORT)
    worker = Worker(
        id=identity.id,
        incarnation=identity.incarnation,
        epoch=identity.epoch,
        process=identity.incarnation,
        role=Role.BOTH,
        http_url=f"http://{identity.host}:{_PORT}",
        model=args.name,
    )

    def beat() -> Beat:
        return Beat(state=State.STARTING, progress=download.progress())

    async with RegistrationClient(args.bootstrap_addr, worker, beat, token=bootstrap_token(), tls=tls):
        return await asyncio.to_thread(local_checkpoint, args.name, args.revision)
