"""A cluster as a test sees it: objects as plain dictionaries, one HTTP request per call."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

T = TypeVar("T")
Item = dict[str, Any]
BATON = "baton.dev/v1alpha1"


class Cluster:
    """`http` is for what has no method here. Statuses of 400 and more are `httpx.HTTPStatusError`.

    Without authority and token the URL is that of a proxy, which has its own.
    """

    def __init__(self, url: str, ca: Path | None = None, token: str = "") -> None:
        self._url, self._ca, self._token = url, ca, token

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=self._url,
            verify=ssl.create_default_context(cafile=str(self._ca)) if self._ca else False,
            headers={"Authorization": f"Bearer {self._token}"} if self._token else {},
            timeout=30.0,
            trust_env=False,
        )

    def path(self, version: str, plural: str, namespace: str = "", name: str = "", part: str = "") -> str:
        root = "/apis" if "/" in version else "/api"
        places = [f"namespaces/{namespace}"] if namespace else []
        return "/".join([root, version, *places, plural, *filter(None, (name, part))])

    def serves(self, version: str, plural: str) -> bool:
        """Whether objects of this kind can be read: not so at once when it was only just defined."""
        return self.http.get(self.path(version, plural)).is_success

    def find(self, version: str, plural: str, namespace: str, name: str) -> Item | None:
        answer = self.http.get(self.path(version, plural, namespace, name))
        return None if answer.status_code == 404 else self._body(answer)

    def get(self, version: str, plural: str, namespace: str, name: str) -> Item:
        return self._body(self.http.get(self.path(version, plural, namespace, name)))

    def list(self, version: str, plural: str, namespace: str = "", labels: str = "") -> list[Item]:
        query = {"labelSelector": labels} if labels else {}
        found = self._body(self.http.get(self.path(version, plural, namespace), params=query))
        return list(found["items"])

    def create(self, version: str, plural: str, namespace: str, item: Item, part: str = "") -> Item:
        name = item["metadata"]["name"] if part else ""
        return self._body(self.http.post(self.path(version, plural, namespace, name, part), json=item))

    def apply(self, plural: str, item: Item, manager: str = "person") -> Item:
        """Server-side apply, as `kubectl apply --server-side` does."""
        meta = item["metadata"]
        path = self.path(item["apiVersion"], plural, meta.get("namespace", ""), meta["name"])
        headers = {"Content-Type": "application/apply-patch+yaml"}
        query = {"fieldManager": manager, "force": "true"}
        return self._body(self.http.patch(path, content=yaml.dump(item), params=query, headers=headers))

    def patch(self, version: str, plural: str, namespace: str, name: str, change: Item, part: str = "") -> Item:
        """A JSON merge patch."""
        headers = {"Content-Type": "application/merge-patch+json"}
        path = self.path(version, plural, namespace, name, part)
        return self._body(self.http.patch(path, json=change, headers=headers))

    def delete(self, version: str, plural: str, namespace: str, name: str) -> None:
        self._body(self.http.delete(self.path(version, plural, namespace, name)))

    def token(self, namespace: str, account: str) -> str:
        """A token of a ServiceAccount, good for the time of a test run."""
        request: Item = {"metadata": {"name": account}, "spec": {"expirationSeconds": 86400}}
        made = self.create("v1", "serviceaccounts", namespace, request, "token")
        return str(made["status"]["token"])

    def _body(self, answer: httpx.Response) -> Item:
        if answer.is_error:
            raise httpx.HTTPStatusError(answer.text, request=answer.request, response=answer)
        body: Item = answer.json()
        return body


def eventually(
    look: Callable[[], T], within: float = 30.0, why: Callable[[], object] = lambda: "", pause: float = 0.05
) -> T:
    """The first true value that `look` gives; an AssertionError with `why` when there is none in time.

    `pause` seconds lie between two looks: more than a moment where looking is work for the cluster.
    """
    end = time.monotonic() + within
    while True:
        value = look()
        if value:
            return value
        assert time.monotonic() < end, f"not within {within} s: {why()}"
        time.sleep(pause)


def labels_of(item: Mapping[str, Any]) -> Mapping[str, str]:
    found: Mapping[str, str] = item["metadata"].get("labels", {})
    return found
