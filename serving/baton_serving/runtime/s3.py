"""Checkpoints in an S3 bucket: brought into `$HF_HOME/s3` whole, or not at all.

A copy is named by a digest of what the bucket lists, so one that is written anew is fetched anew while workers still
read the old one. Its folder gets that name when every file in it is complete; until then files grow in a folder beside
it, from where a fetch that was broken off goes on. With HF_HUB_OFFLINE the latest copy is taken, and nobody asked.

Credentials, region and endpoint are found as by every other program of AWS: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so
on; without credentials requests are not signed, which is enough for public buckets.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO, Final

from baton_serving.errors import ConfigError
from baton_serving.logs import fields
from baton_serving.runtime.s3_checksum import checksum_of

log = logging.getLogger(__name__)

SCHEME: Final = "s3://"
_AT_ONCE = 8  # files
_CHUNK = 4 << 20
_TRIES = 5  # in a row that bring nothing new
_LATEST = "latest"
_PARTIAL = "." + "[0-9a-f]" * 16 + "/"


@dataclass(frozen=True)
class RemoteFile:
    """An object of the bucket as it was listed; `etag` changes with its content."""

    key: str
    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class Checkpoint:
    """A folder of a bucket as `client` listed it.

    `home` is where its copies lie, `folder` this one when it is complete, `partial` until then.
    """

    uri: str
    bucket: str
    files: tuple[RemoteFile, ...]
    home: Path
    client: Any = field(repr=False, compare=False)

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def folder(self) -> Path:
        listed = "\n".join(f"{file.name} {file.size} {file.etag}" for file in self.files)
        return self.home / hashlib.sha256(listed.encode()).hexdigest()[:16]

    @property
    def partial(self) -> Path:
        return self.home / f".{self.folder.name}"


def find(uri: str, patterns: Sequence[str]) -> Checkpoint:
    """The files of the `patterns` that the bucket has at `uri`, s3://BUCKET/PATH.

    Raises ConfigError, also when there is no model among them.
    """
    bucket, path, home = _place(uri)
    files = []
    with _explained(uri):
        client = _client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=path, Delimiter="/")
        for item in (item for page in pages for item in page.get("Contents", ())):
            name = item["Key"].removeprefix(path)
            if any(fnmatch(name, pattern) for pattern in patterns):
                files.append(RemoteFile(item["Key"], name, item["Size"], item["ETag"]))
    if not any(file.name == "config.json" for file in files):
        raise ConfigError(f"--model-path {uri}: the bucket has no config.json there")
    return Checkpoint(uri, bucket, tuple(files), home, client)


def fetch(checkpoint: Checkpoint) -> Path:
    """The folder with its files, fetched as far as they are not there. Raises ConfigError.

    Of several processes one fetches, while the others wait.
    """
    folder, partial = checkpoint.folder, checkpoint.partial
    with _explained(checkpoint.uri), _alone_in(checkpoint.home):
        if not folder.is_dir():
            for other in set(checkpoint.home.glob(_PARTIAL)) - {partial}:
                shutil.rmtree(other)  # of what the bucket listed earlier
            partial.mkdir(exist_ok=True)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda file: _fetch_file(checkpoint, file), checkpoint.files))
            partial.rename(folder)
        latest = checkpoint.home / _LATEST
        latest.with_suffix(".new").write_text(folder.name)
        latest.with_suffix(".new").replace(latest)
    return folder


def s3_checkpoint(uri: str, patterns: Sequence[str]) -> Path:
    """The folder of a copy of the checkpoint at `uri`, fetched if need be, with its files of the `patterns`.

    Raises ConfigError.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not HF_HUB_OFFLINE:
        return fetch(find(uri, patterns))
    home = _place(uri)[2]
    try:
        return home / (home / _LATEST).read_text()
    except FileNotFoundError:
        raise ConfigError(f"--model-path {uri}: HF_HUB_OFFLINE is set, and {home} has no copy") from None


def _place(uri: str) -> tuple[str, str, Path]:
    """Bucket, the beginning of all keys, and the folder for copies."""
    from huggingface_hub.constants import HF_HOME

    bucket, _, path = uri.removeprefix(SCHEME).partition("/")
    parts = [part for part in path.split("/") if part]
    if not bucket or {".", ".."} & {bucket, *parts}:
        raise ConfigError(f"--model-path {uri}: write s3://BUCKET/PATH")
    return bucket, "".join(f"{part}/" for part in parts), Path(HF_HOME, "s3", bucket, *parts)


@contextmanager
def _alone_in(home: Path) -> Iterator[None]:
    """The only process of this and other machines that fetches into `home`; the lock goes with its holder."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _client() -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.Session()
    signed = {} if session.get_credentials() else {"signature_version": UNSIGNED}
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": _TRIES},
        max_pool_connections=_AT_ONCE,
        **signed,
    )
    region = session.region_name or "us-east-1"  # where AWS keeps the buckets that say nothing
    return session.client("s3", region_name=region, config=config)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError, OSError, ValueError) as error:  # the last for an endpoint that is no URL
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--model-path {uri}: {reason}") from error


def _fetch_file(checkpoint: Checkpoint, file: RemoteFile) -> None:
    """Bring one file into the partial folder, from where an earlier fetch was broken off."""
    client, bucket = checkpoint.client, checkpoint.bucket
    target, part = checkpoint.partial / file.name, checkpoint.partial / f".{file.name}"
    if target.exists():
        return
    with part.open("ab") as sink:
        _append(client, bucket, file, sink)
        os.fsync(sink.fileno())
    checksum = checksum_of(client, bucket, file.key, file.etag, file.size)
    if checksum is None:
        log.info("the bucket tells no checksum that can be compared", extra=fields(file=file.key))
    if part.stat().st_size != file.size or not (checksum is None or checksum.fits(part)):
        part.unlink()
        raise ConfigError(f"--model-path s3://{bucket}/{file.key}: what came does not have the checksum of the bucket")
    part.rename(target)


def _append(client: Any, bucket: str, file: RemoteFile, sink: BinaryIO) -> None:
    """What is missing at the end of `sink`. A connection that breaks in the middle is replaced where it broke."""
    from botocore.exceptions import BotoCoreError

    tries = 0
    while (begin := sink.tell()) < file.size:
        try:
            span = {"Range": f"bytes={begin}-", "IfMatch": file.etag}
            answer = client.get_object(Bucket=bucket, Key=file.key, **span)
            for chunk in answer["Body"].iter_chunks(_CHUNK):
                sink.write(chunk)
        except BotoCoreError:
            tries = tries + 1 if sink.tell() == begin else 0
            if tries == _TRIES:
                raise
