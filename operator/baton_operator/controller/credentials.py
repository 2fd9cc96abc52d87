"""What a round needs Secrets for: the certificates of a service's parts, and the token for its bootstrap server.

Nothing here tells keys or tokens to the log.
"""

from __future__ import annotations

import base64
import binascii
import logging
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

from baton_operator.certificates import KeyMaker, Lifetimes, rotate
from baton_operator.certificates.secrets import files_of, secrets, stored
from baton_operator.controller.api_server import ApiServer
from baton_operator.controller.resources import SECRETS
from baton_operator.errors import NotFound, Refused
from baton_operator.planner import Context, Observed
from baton_operator.planner.context import INSTANCE
from baton_operator.planner.objects import Object, text_at
from baton_operator.planner.pods import CERTIFIED, OPERATOR_TOKEN, certificates_secret

log = logging.getLogger(__name__)

_FORBIDDEN: Final = 403


async def with_credentials(api: ApiServer, context: Context, observed: Observed, now: datetime) -> Observed:
    """`observed` with the certificates that the service is to have, and the token for its bootstrap server."""
    security = context.manifest.spec.security
    if security.mutual_tls:
        try:
            found = await api.list(SECRETS, context.namespace, {INSTANCE: context.name})
        except Refused as error:
            if error.status != _FORBIDDEN:
                raise
            return replace(observed, secrets=None)
        observed = observed.joined(context.service, found)
        made = _certified(context, observed, now)
        token = files_of(context, made, "bootstrap")[OPERATOR_TOKEN].decode()
        return replace(observed, secrets=made, token=token)
    if security.token is None:
        return observed
    try:
        token = await bootstrap_token(api, context)
    except NotFound:
        return replace(observed, token_trouble=f"there is no Secret {security.token.name}, which security.token names")
    except Refused as error:
        if error.status != _FORBIDDEN:
            raise
        sentence = (
            f"the operator may not read Secret {security.token.name}, which security.token names, so it cannot ask the "
            "bootstrap server for the workers; install its chart with secrets: true"
        )
        return replace(observed, token_trouble=sentence)
    if not token:
        sentence = f"Secret {security.token.name} has no entry {security.token.key}, which security.token names"
        return replace(observed, token_trouble=sentence)
    return replace(observed, token=token)


async def bootstrap_token(api: ApiServer, context: Context) -> str:
    """What the bootstrap server's HTTP port asks for; "" when it asks for nothing, or its Secret has no such entry.

    Raises `ApiError` when the Secret is missing or may not be read.
    """
    security = context.manifest.spec.security
    if security.mutual_tls:
        name, key = certificates_secret(context, "bootstrap"), OPERATOR_TOKEN
    elif security.token is not None:
        name, key = security.token.name, security.token.key
    else:
        return ""
    return _entry(await api.get(SECRETS, context.namespace, name), key)


def client_tls(context: Context, observed: Observed) -> ssl.SSLContext | None:
    """For asking a worker as the gateway does; None without mutual TLS."""
    if not observed.secrets:
        return None
    files = files_of(context, observed.secrets, "gateway")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(cadata=files["ca.crt"].decode())
    with tempfile.TemporaryDirectory() as folder:  # the standard library takes keys from files alone
        for name in ("tls.crt", "tls.key"):
            (Path(folder) / name).write_bytes(files[name])
        made.load_cert_chain(Path(folder) / "tls.crt", Path(folder) / "tls.key")
    return made


def _certified(context: Context, observed: Observed, now: datetime) -> Sequence[Object]:
    """The Secrets that the service is to have now."""
    before = stored(context, observed)
    after = rotate(before, CERTIFIED, now, KeyMaker(), Lifetimes())
    for part, leaf in after.leaves.items():
        if before.leaves.get(part) != leaf:
            log.info("%s/%s: new certificate files for %s", context.namespace, context.name, part)
    return tuple(secrets(context, observed, after))


def _entry(secret: Object, key: str) -> str:
    """One entry as text, without surrounding white space; "" when it is missing or no text."""
    try:
        return base64.b64decode(text_at(secret, "data", key), validate=True).decode().strip()
    except (binascii.Error, UnicodeDecodeError):
        return ""
