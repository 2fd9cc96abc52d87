"""Checkpoints from a bucket: whole or not at all, from where a fetch was broken off, and what they were written as."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from support.s3_server import S3Server, reads_from, s3_server

from baton_serving.errors import ConfigError
from baton_serving.runtime.locate import PATTERNS, local_checkpoint
from baton_serving.runtime.s3 import Checkpoint, fetch, find

SHARD = os.urandom(3 << 20)
FILES = {"config.json": b"{}", "model.safetensors": SHARD, "merges.txt": b""}
URI = "s3://models/tiny/v1"
PART = 5 << 20  # the least that S3 takes


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    reads_from(server, monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    server.empty("models")
    write(server.client, FILES)
    server.reads.clear()
    server.cut, server.cuts = 0, 0
    return server


def write(client: Any, files: dict[str, bytes], **how: str) -> None:
    for name, data in files.items():
        client.put_object(Bucket="models", Key=f"tiny/v1/{name}", Body=data, **how)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def begun(data: bytes) -> Checkpoint:
    """A checkpoint of which a fetch that was broken off left so much."""
    checkpoint = find(URI, PATTERNS)
    checkpoint.partial.mkdir(parents=True)
    (checkpoint.partial / ".model.safetensors").write_bytes(data)
    return checkpoint


def test_a_worker_gets_what_it_reads_and_asks_for_it_once(bucket: S3Server) -> None:
    client = bucket.client
    write(client, {"README.md": b"not for workers", "original/config.json": b"{}"})
    client.put_object(Bucket="models", Key="tiny/v10/config.json", Body=b"another")
    folder = local_checkpoint(URI, None)
    assert contents(folder) == FILES
    asked = len(bucket.reads)
    assert local_checkpoint(f"{URI}/", None) == folder
    assert len(bucket.reads) == asked


def test_a_fetch_that_was_broken_off_goes_on(bucket: S3Server) -> None:
    checkpoint = begun(SHARD[: 1 << 20])
    bucket.cut, bucket.cuts = 1 << 19, 3
    assert contents(fetch(checkpoint)) == FILES
    begins = [(1 << 20) + turn * (1 << 19) for turn in range(4)]
    assert [read for read in bucket.reads if read != "bytes=0-"] == [f"bytes={begin}-" for begin in begins]


def test_a_connection_that_brings_nothing_is_given_up(bucket: S3Server) -> None:
    checkpoint = find(URI, PATTERNS)
    bucket.cuts = 1000
    with pytest.raises(ConfigError, match="s3://models/tiny/v1: 0 read"):
        fetch(checkpoint)
    bucket.cuts = 0
    assert contents(fetch(checkpoint)) == FILES


def test_what_is_written_anew_is_fetched_anew_beside_the_old(bucket: S3Server) -> None:
    old = local_checkpoint(URI, None)
    write(bucket.client, {"config.json": b'{"a": 1}'})
    given_up = begun(b"x")
    write(bucket.client, {"config.json": b'{"a": 2}'})
    new = local_checkpoint(URI, None)
    assert contents(new) == {**FILES, "config.json": b'{"a": 2}'}
    assert contents(old) == FILES
    assert not given_up.partial.exists()


@pytest.mark.parametrize("kind", ["md5", "sha256", "crc32", "parts"])
def test_what_came_is_held_against_the_checksum_of_the_bucket(bucket: S3Server, kind: str) -> None:
    client, data = bucket.client, SHARD + SHARD
    if kind == "parts":
        place = {"Bucket": "models", "Key": "tiny/v1/model.safetensors"}
        upload = {**place, "UploadId": client.create_multipart_upload(**place)["UploadId"]}
        parts = [
            {"PartNumber": number, "ETag": client.upload_part(**upload, PartNumber=number, Body=part)["ETag"]}
            for number, part in ((1, data[:PART]), (2, data[PART:]))
        ]
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    else:
        how = {"sha256": {"ChecksumAlgorithm": "SHA256"}, "crc32": {"ChecksumAlgorithm": "CRC32"}, "md5": {}}[kind]
        write(client, {"model.safetensors": data}, **how)
    checkpoint = begun(b"x" * (len(data) - 1))
    with pytest.raises(ConfigError, match=r"model\.safetensors: what came does not have the checksum of the bucket"):
        fetch(checkpoint)
    assert contents(fetch(checkpoint))["model.safetensors"] == data


def test_of_several_that_want_it_one_fetches(bucket: S3Server) -> None:
    with ThreadPoolExecutor(3) as pool:
        folders = {one.result() for one in [pool.submit(local_checkpoint, URI, None) for _ in range(3)]}
    assert [contents(folder) for folder in folders] == [FILES]
    assert len(bucket.reads) == sum(bool(data) for data in FILES.values())


def test_offline_the_latest_copy_is_taken(bucket: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        local_checkpoint(URI, None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    folder = local_checkpoint(URI, None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert local_checkpoint(URI, None) == folder


@pytest.mark.parametrize(("endpoint", "said"), [("nowhere", "Invalid endpoint"), ("", "Not a directory")])
def test_a_wrong_endpoint_and_a_cache_that_cannot_be_written_are_said_so(
    bucket: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str, said: str
) -> None:
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    else:
        (tmp_path / "s3").write_text("no folder")
    with pytest.raises(ConfigError, match=f"{URI}: .*{said}"):
        local_checkpoint(URI, None)


@pytest.mark.parametrize(
    ("uri", "revision", "said"),
    [
        ("s3://models/other", None, "s3://models/other: the bucket has no config.json there"),
        ("s3://nobody/tiny", None, "NoSuchBucket"),
        ("s3://", None, "write s3://BUCKET/PATH"),
        ("s3://models/../x", None, "write s3://BUCKET/PATH"),
        (URI, "main", "leave out --revision"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(bucket: S3Server, uri: str, revision: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        local_checkpoint(uri, revision)
    assert "\n" not in caught.value.message
