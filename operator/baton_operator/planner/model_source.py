"""Where a worker's checkpoint comes from: volumes, the init container that fetches it, and the flags that name it."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton_operator.planner.context import Context
from baton_operator.planner.objects import without_empty
from baton_operator.planner.pods import certificates, container_security, downloads, identity, secret_token
from baton_operator.planner.revision import fetches

MODELS = "/models"
IN_IMAGE = "/opt/baton/share"  # the Dockerfile copies models to here


@dataclass(frozen=True)
class ModelSource:
    """What a worker's pod needs to find its checkpoint."""

    flags: list[str]
    volumes: list[object] = field(default_factory=list)
    mounts: list[object] = field(default_factory=list)
    env: list[object] = field(default_factory=list)
    init: list[object] = field(default_factory=list)
    downloads: bool = False


def model_source(context: Context, image: str) -> ModelSource:
    """From the URI. Rules of the manifest have refused what is not known here."""
    uri = context.manifest.spec.model.uri
    scheme, _, rest = uri.partition("://")
    if scheme == "hf":
        return _fetched(context, rest, image, _hub_env(context))
    if scheme == "s3":
        return _fetched(context, uri, image, _bucket_env(context))
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        volume: dict[str, object] = {
            "name": "model",
            "persistentVolumeClaim": {"claimName": claim, "readOnly": True},
        }
        return _mounted(volume, path)
    if scheme == "oci":
        return _mounted({"name": "model", "image": {"reference": rest, "pullPolicy": "IfNotPresent"}}, "")
    return ModelSource(["--model-path", rest if rest.startswith("/") else f"{IN_IMAGE}/{rest}"])


def _reporting(context: Context) -> list[str]:
    """Where the init container says how far it is."""
    address = ["--host", "$(POD_IP)", "--bootstrap-addr", context.bootstrap_addresses()]
    return [*address, *certificates(context, "workers")[2]]


def _mounted(volume: dict[str, object], path: str) -> ModelSource:
    mount = {"name": "model", "mountPath": MODELS, "readOnly": True}
    return ModelSource(["--model-path", f"{MODELS}/{path}".rstrip("/")], [volume], [mount])


def _hub_env(context: Context) -> list[object]:
    token = context.manifest.spec.model.token
    return [] if token is None else [_secret_entry("HF_TOKEN", token.name, token.key)]


def _bucket_env(context: Context) -> list[object]:
    bucket = context.manifest.spec.model.s3
    if bucket is None:
        return []
    plain = {"AWS_ENDPOINT_URL": bucket.endpoint, "AWS_DEFAULT_REGION": bucket.region}
    env: list[object] = [{"name": name, "value": value} for name, value in plain.items() if value is not None]
    if bucket.credentials is not None:
        env += [
            _secret_entry(name, bucket.credentials, name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        ]
        env.append(_secret_entry("AWS_SESSION_TOKEN", bucket.credentials, "AWS_SESSION_TOKEN", optional=True))
    return env


def _secret_entry(variable: str, secret: str, key: str, *, optional: bool = False) -> object:
    entry: dict[str, object] = {"name": secret, "key": key}
    return {"name": variable, "valueFrom": {"secretKeyRef": {**entry, "optional": True} if optional else entry}}


def _fetched(context: Context, name: str, image: str, access: list[object]) -> ModelSource:
    """The init container fills a cache folder; a worker that never changes its weights needs no network for it."""
    model = context.manifest.spec.model
    if model.cache is None:
        volume: dict[str, object] = {"name": "model", "emptyDir": {}}
    elif model.cache.claim is not None:
        volume = {"name": "model", "persistentVolumeClaim": {"claimName": model.cache.claim}}
    else:
        volume = {"name": "model", "hostPath": {"path": model.cache.node_path, "type": "DirectoryOrCreate"}}
    more_volumes, more_mounts, env = downloads(context)
    revision = [] if model.revision is None else ["--revision", model.revision]
    home = {"name": "HF_HOME", "value": MODELS}
    fetch_env = [home, *env, *access]
    _, token_mounts, token_env = secret_token(context)
    _, tls_mounts, _ = certificates(context, "workers")
    fetch = without_empty(
        {
            "name": "fetch-model",
            "image": image,
            "args": ["fetch", name, *revision, *_reporting(context)],
            "env": [*identity(), *fetch_env, *token_env],
            "securityContext": container_security(),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [
                {"name": "model", "mountPath": MODELS},
                {"name": "tmp", "mountPath": "/tmp"},
                *more_mounts,
                *token_mounts,
                *tls_mounts,
            ],
        }
    )
    return ModelSource(
        flags=["--model-path", name, *revision],
        volumes=[volume, *more_volumes],
        mounts=[{"name": "model", "mountPath": MODELS}, *(more_mounts if fetches(context.manifest.spec) else [])],
        env=fetch_env if fetches(context.manifest.spec) else [home, {"name": "HF_HUB_OFFLINE", "value": "1"}],
        init=[fetch],
        downloads=True,
    )
