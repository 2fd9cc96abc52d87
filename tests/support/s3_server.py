"""An S3 service in this process: moto's, on a port of loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}


class S3Server:
    """`reads` holds the range of every object that was asked for; of the next answers that have a body longer than
    `cut`, as many as `cuts` end after so many bytes. Objects that `client` writes have the checksums that it asks for
    alone."""

    def __init__(self, port: int = 0) -> None:
        moto = DomainDispatcherApplication(create_backend_app)
        self.reads: list[str] = []
        self.cut, self.cuts = 0, 0

        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            body: Iterable[bytes] = moto(environ, start_response)
            if "HTTP_RANGE" not in environ:
                return body
            self.reads.append(environ["HTTP_RANGE"])
            data = b"".join(body)
            if self.cuts and len(data) > self.cut:
                self.cuts -= 1
                data = data[: self.cut]
            return [data]

        self._server = make_server("127.0.0.1", port, application, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.client = self._client()

    @property
    def environment(self) -> dict[str, str]:
        """What a program that is to read from here must have in its environment."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}

    def empty(self, bucket: str) -> None:
        """Make `bucket`, or remove everything from it."""
        if bucket not in [one["Name"] for one in self.client.list_buckets()["Buckets"]]:
            self.client.create_bucket(Bucket=bucket)
        for item in self.client.list_objects_v2(Bucket=bucket).get("Contents", ()):
            self.client.delete_object(Bucket=bucket, Key=item["Key"])

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            config=Config(request_checksum_calculation="when_required"),
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    try:
        yield server
    finally:
        server.close()


def reads_from(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is to read from `server`."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
