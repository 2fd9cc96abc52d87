"""The API server as the operator uses it: a few verbs on plain objects, every failure as one of our errors."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, ApiException, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from baton_operator.controller.resources import LEASES, Resource, resource_of
from baton_operator.errors import ApiError, Conflict, NotFound, NotLeading, Refused, Unreachable
from baton_operator.planner.context import FIELD_MANAGER
from baton_operator.planner.objects import Object, list_at, map_at, ref_of, text_at

_JSON = "application/json"
_MERGE = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"
_TIMEOUT = 30.0  # seconds; a list of many pods takes a while
_CONNECTIONS = 32
_PAGE = 500  # objects in one answer


@asynccontextmanager
async def connected() -> AsyncIterator[ApiClient]:
    """A client with the rights of `$KUBECONFIG`, else in a pod of its ServiceAccount, else of `~/.kube/config`."""
    configuration = Configuration()
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
        load_incluster_config(client_configuration=configuration)
    else:
        await load_kube_config(config_file=os.environ.get("KUBECONFIG"), client_configuration=configuration)
    configuration.connection_pool_maxsize = _CONNECTIONS
    async with ApiClient(configuration) as client:
        yield client


class ApiServer:
    """Reads whenever asked, writes only while `may_write` says so. Raises `ApiError`, `Unreachable`, `NotLeading`.

    `count` is told the verb and the plural of each request. What is patched belongs to the field manager `manager`.
    """

    def __init__(
        self,
        client: ApiClient,
        may_write: Callable[[], bool],
        count: Callable[[str, str], None],
        manager: str = FIELD_MANAGER,
    ) -> None:
        self._client = client
        self._manager = manager
        self._may_write = may_write
        self._count = count

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        self._count("get", resource.plural)
        return await self._send("GET", resource.path(namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        labels: Mapping[str, str],
        fields: Mapping[str, str] | None = None,
    ) -> list[Object]:
        """All objects with these labels, of which "" means any value, and fields; who set which field is left out.

        A list's items do not say what they are, so that is added.
        """
        query = {"limit": str(_PAGE)}
        for name, wanted in (("labelSelector", labels), ("fieldSelector", fields or {})):
            if wanted:
                query[name] = ",".join(f"{key}={value}" if value else key for key, value in wanted.items())
        kind = {"apiVersion": resource.api_version, "kind": resource.kind}
        items: list[Object] = []
        while True:
            self._count("list", resource.plural)
            found = await self._send("GET", resource.path(namespace), query)
            for item in list_at(found, "items"):
                metadata = {key: value for key, value in map_at(item, "metadata").items() if key != "managedFields"}
                items.append({**map_at(item), **kind, "metadata": metadata})
            query["continue"] = text_at(found, "metadata", "continue")
            if not query["continue"]:
                return items

    async def apply(self, item: Object, subresource: str = "") -> Object:
        """Server-side apply: what we once set and no longer name goes, what others set stays."""
        namespace, name = text_at(item, "metadata", "namespace"), text_at(item, "metadata", "name")
        resource = resource_of(ref_of(item).api_version, ref_of(item).kind)
        self._write("apply", f"{resource.plural}/{subresource}" if subresource else resource.plural)
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._send("PATCH", resource.path(namespace, name, subresource), query, item, _APPLY)

    async def create(self, resource: Resource, item: Object) -> Object:
        self._write("create", resource.plural)
        return await self._post(resource, item)

    async def create_lease(self, item: Object) -> Object:
        """What gives the right to write is written without it."""
        self._count("create", LEASES.plural)
        return await self._post(LEASES, item)

    async def replace_lease(self, item: Object) -> Object:
        """Put `item` in the place of the one with its resourceVersion."""
        self._count("update", LEASES.plural)
        namespace, name = text_at(item, "metadata", "namespace"), text_at(item, "metadata", "name")
        return await self._send("PUT", LEASES.path(namespace, name), {"fieldManager": FIELD_MANAGER}, item)

    async def patch_metadata(self, resource: Resource, item: Object, changes: Mapping[str, object]) -> Object:
        """Change `item`'s metadata, provided that it is still as it was read."""
        return await self._patch(resource, item, {"metadata": changes})

    async def patch_spec(self, resource: Resource, item: Object, changes: Mapping[str, object]) -> Object:
        """Change `item`'s spec, provided that it is still as it was read."""
        return await self._patch(resource, item, {"spec": changes})

    async def _patch(self, resource: Resource, item: Object, changes: Mapping[str, Mapping[str, object]]) -> Object:
        self._write("patch", resource.plural)
        namespace, name = text_at(item, "metadata", "namespace"), text_at(item, "metadata", "name")
        version = text_at(item, "metadata", "resourceVersion")
        body = {**changes, "metadata": {**changes.get("metadata", {}), "resourceVersion": version}}
        query = {"fieldManager": self._manager}
        return await self._send("PATCH", resource.path(namespace, name), query, body, _MERGE)

    async def delete(self, resource: Resource, item: Object) -> None:
        """Delete this very object, not a later one of its name; its own children follow in the background."""
        self._write("delete", resource.plural)
        namespace, name = text_at(item, "metadata", "namespace"), text_at(item, "metadata", "name")
        body = {"propagationPolicy": "Background", "preconditions": {"uid": text_at(item, "metadata", "uid")}}
        await self._send("DELETE", resource.path(namespace, name), body=body)

    async def ask(
        self, namespace: str, service: str, port: str, path: str, headers: Mapping[str, str] | None = None
    ) -> Object:
        """What a Service of the cluster answers, by way of the API server, which asks it in the caller's stead."""
        place = f"/api/v1/namespaces/{namespace}/services/{service}:{port}/proxy/{path}"
        return await self._send("GET", place, more=headers)

    async def api_versions(self) -> frozenset[str]:
        """Every group/version that the cluster serves, the core's aside."""
        groups = list_at(await self._send("GET", "/apis"), "groups")
        return frozenset(text_at(v, "groupVersion") for group in groups for v in list_at(group, "versions"))

    async def _post(self, resource: Resource, item: Object) -> Object:
        path = resource.path(text_at(item, "metadata", "namespace"))
        return await self._send("POST", path, {"fieldManager": FIELD_MANAGER}, item)

    async def plurals(self, api_version: str) -> frozenset[str]:
        """The kinds that this version of a group has, none where there is no such version."""
        try:
            found = await self._send("GET", f"/apis/{api_version}")
        except NotFound:
            return frozenset()
        return frozenset(text_at(item, "name") for item in list_at(found, "resources"))

    def _write(self, verb: str, plural: str) -> None:
        if not self._may_write():
            raise NotLeading(f"{verb} {plural} was held back: the Lease was not renewed in time")
        self._count(verb, plural)

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        form: str = _JSON,
        more: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        headers: dict[str, str] = {"Accept": _JSON, "Content-Type": form, **(more or {})}
        try:
            await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            url = f"{self._client.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
            answer = await self._client.call_api(method, url, headers, body, _request_timeout=_TIMEOUT)
            data = await answer.read()
        except ApiException as error:
            raise _api_error(error.status, error.body or error.reason) from error
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{method} {path}: {error or type(error).__name__}") from error
        if answer.status >= 300:
            raise _api_error(answer.status, data)
        value = json.loads(data)
        return value if isinstance(value, dict) else {}


def _api_error(status: int | None, body: str | bytes) -> ApiError | Unreachable:
    try:
        message = text_at(json.loads(body), "message") or str(body)
    except ValueError:
        message = body if isinstance(body, str) else body.decode(errors="replace")
    status = status or 0
    if status == 0 or status == 429 or status >= 500:
        return Unreachable(f"{message[:500]} (HTTP {status})")
    return {404: NotFound, 409: Conflict}.get(status, Refused)(status, message)
