"""Secrets as the rotation sees them, and back.

`NAME-authority` holds the authorities with their keys, which no pod mounts. `NAME-PART-tls` holds what a part's pods
do: `tls.crt`, `tls.key`, `ca.crt`; for workers `curve.key`, which all of them share, and for the bootstrap server
`operator.token`, which the operator shows at its HTTP port and which is made once. `curve.key` has three keys, one a
line: the one in use, the one that comes next, so that all know it by then, and the one before, which some use a little
longer. They move on with every new certificate of the workers.
"""

from __future__ import annotations

import base64
import re
import secrets as random
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import zmq

from baton_operator.certificates.issue import read_pair
from baton_operator.certificates.rotate import Leaf, Pair, Stored
from baton_operator.planner.context import Context
from baton_operator.planner.objects import Object, Ref, map_at, text_at
from baton_operator.planner.observed import Observed
from baton_operator.planner.pods import CERTIFIED, OPERATOR_TOKEN, certificates_secret

_SINCE: Final = "baton.dev/since"
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


def stored(context: Context, observed: Observed) -> Stored:
    """What the cluster holds; what cannot be read counts as missing, and is made anew."""
    authority = _data(observed, context.child_name("authority"))
    leaves = {part: leaf for part in CERTIFIED if (leaf := _leaf(context, observed, part)) is not None}
    return Stored(
        read_pair(authority.get("current.crt", b""), authority.get("current.key", b"")),
        read_pair(authority.get("following.crt", b""), authority.get("following.key", b"")),
        authority.get("former.crt") or None,
        leaves,
    )


def secrets(context: Context, observed: Observed, state: Stored) -> Iterator[Object]:
    """The Secrets to apply: the authorities first, so that nothing is signed by one that nobody knows."""
    assert state.current is not None
    authority = {"current.crt": state.current.certificate, "current.key": state.current.key}
    if state.following is not None:
        authority |= {"following.crt": state.following.certificate, "following.key": state.following.key}
    if state.former is not None:
        authority["former.crt"] = state.former
    yield _secret(context, context.child_name("authority"), "authority", authority)
    for part, leaf in state.leaves.items():
        name = certificates_secret(context, part)
        data = {"tls.crt": leaf.pair.certificate, "tls.key": leaf.pair.key, "ca.crt": b"".join(leaf.trusted)}
        if part == "workers":
            before = _data(observed, name)
            renewed = before.get("tls.crt") != leaf.pair.certificate
            data["curve.key"] = b"\n".join(curve_keys(before.get("curve.key", b"").split(), renewed=renewed))
        if part == "bootstrap":
            data[OPERATOR_TOKEN] = _data(observed, name).get(OPERATOR_TOKEN) or random.token_urlsafe(32).encode()
        yield _secret(context, name, part, data, {_SINCE: leaf.since.isoformat()})


def curve_keys(before: Sequence[bytes], *, renewed: bool) -> list[bytes]:
    """The workers' secret keys: in use, next, former. They move on when the certificate is `renewed`."""
    if len(before) < 2:
        return [*before, *(zmq.curve_keypair()[1] for _ in range(2 - len(before)))]
    return [before[1], zmq.curve_keypair()[1], before[0]] if renewed else list(before)


def files_of(context: Context, made: Sequence[Object], part: str) -> dict[str, bytes]:
    """What the pods of `part` mount, from the Secrets that `secrets` made."""
    name = certificates_secret(context, part)
    (found,) = [item for item in made if text_at(item, "metadata", "name") == name]
    return {key: base64.b64decode(str(value)) for key, value in map_at(found, "data").items()}


def _leaf(context: Context, observed: Observed, part: str) -> Leaf | None:
    name = certificates_secret(context, part)
    data = _data(observed, name)
    pair: Pair | None = read_pair(data.get("tls.crt", b""), data.get("tls.key", b""))
    try:
        since = datetime.fromisoformat(text_at(_item(observed, name), "metadata", "annotations", _SINCE))
    except ValueError:
        return None
    return None if pair is None else Leaf(pair, tuple(_PEM.findall(data.get("ca.crt", b""))), since)


def _item(observed: Observed, name: str) -> Object:
    return observed.objects.get(Ref("v1", "Secret", name), {})


def _data(observed: Observed, name: str) -> dict[str, bytes]:
    data = _item(observed, name).get("data")
    if not isinstance(data, Mapping):
        return {}
    try:
        return {key: base64.b64decode(value, validate=True) for key, value in data.items()}
    except (ValueError, TypeError):
        return {}


def _secret(
    context: Context, name: str, component: str, data: Mapping[str, bytes], annotations: Object | None = None
) -> Object:
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    made = context.child("v1", "Secret", name, component, {"type": "Opaque", "data": encoded})
    metadata = made["metadata"]
    assert isinstance(metadata, dict)
    return {**made, "metadata": {**metadata, "annotations": dict(annotations)}} if annotations else made
