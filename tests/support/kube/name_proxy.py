"""An HTTP proxy in the place of a cluster's DNS: for a program that calls Services by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx

_OWN = {"connection", "transfer-encoding", "content-length", "date", "server", "proxy-connection", "host"}


class NameProxy:
    """`resolve` turns host names into addresses. `cut` makes it answer 502 to everything."""

    def __init__(self, resolve: Callable[[str], str]) -> None:
        self.cut = False
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

            def do_GET(self) -> None:
                target = urlsplit(self.path)
                url = target._replace(netloc=f"{resolve(target.hostname or '')}:{target.port or 80}").geturl()
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name: text for name, text in self.headers.items() if name.lower() not in _OWN}
                try:
                    if proxy.cut:
                        raise httpx.ConnectError("cut")
                    answer = httpx.request(
                        self.command, url, content=body, headers=headers, timeout=60.0, trust_env=False
                    )
                except httpx.TransportError as error:
                    self.send_error(502, type(error).__name__)
                    return
                self.send_response(answer.status_code)
                for name, text in answer.headers.items():
                    if name not in (*_OWN, "content-encoding"):
                        self.send_header(name, text)
                self.send_header("content-length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_PUT = do_POST = do_GET  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, name="name-proxy", daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
