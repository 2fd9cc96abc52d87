"""A few requests to the cluster's API server, with all rights, for the programs of the cluster itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl

from support.devcluster.layout import Layout


class Api:
    """One connection that is kept; `address` is that of the machine, as seen from where this runs."""

    def __init__(self, layout: Layout, address: str = "127.0.0.1") -> None:
        self._layout, self._address = layout, address
        self._connection: http.client.HTTPSConnection | None = None

    def get(self, path: str) -> bytes | None:
        """The body of a good answer."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, body = self._ask("GET", path, None)
            return body if status == 200 else None
        return None

    def post(self, path: str, item: object) -> bool:
        """Whether it is there now."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._ask("POST", path, json.dumps(item).encode())[0] in (201, 409)
        return False

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection, self._connection = self._connection or self._connected(), None
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            read = answer.status, answer.read()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return read

    def _connected(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self._layout.pki("ca.crt")))
        context.load_cert_chain(self._layout.pki("admin.crt"), self._layout.pki("admin.key"))
        return http.client.HTTPSConnection(self._address, 6443, context=context, timeout=5)
