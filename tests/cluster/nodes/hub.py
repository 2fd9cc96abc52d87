"""Runs in a pod of the worker's image: its demo models as two revisions of one repository of a Hugging Face hub."""

from __future__ import annotations

import hashlib
import http.server
import json
import pathlib
import re

MODELS = pathlib.Path("/opt/baton/share/models")
REVISIONS = {"v1": "baton-tiny", "v2": "baton-tiny-v2"}
COMMITS = {hashlib.sha1(name.encode()).hexdigest(): folder for name, folder in REVISIONS.items()}
ABOUT = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^/?]+)")
TREE = re.compile(r"/api/models/[^/]+/[^/]+/tree/([^/?]+)")
FILE = re.compile(r"/[^/]+/[^/]+/resolve/([^/]+)/([\w.]+)$")


def commit_of(revision: str) -> str:
    return revision if revision in COMMITS else hashlib.sha1(revision.encode()).hexdigest()


def digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if found := ABOUT.match(self.path):
            commit = commit_of(found[2])
            files = [{"rfilename": path.name} for path in sorted((MODELS / COMMITS[commit]).iterdir())]
            self._answer(json.dumps({"id": found[1], "sha": commit, "siblings": files}).encode(), {})
        elif found := TREE.match(self.path):
            paths = sorted((MODELS / COMMITS[commit_of(found[1])]).iterdir())
            tree = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": digest(path)} for path in paths
            ]
            self._answer(json.dumps(tree).encode(), {})
        elif found := FILE.match(self.path):
            commit = commit_of(found[1])
            content = (MODELS / COMMITS[commit] / found[2]).read_bytes()
            self._answer(
                content,
                {
                    "ETag": f'"{digest(MODELS / COMMITS[commit] / found[2])}"',
                    "X-Repo-Commit": commit,
                    "X-Linked-Size": str(len(content)),
                },
            )
        else:
            self.send_error(404)

    def _answer(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


http.server.ThreadingHTTPServer(("", 80), Hub).serve_forever()
