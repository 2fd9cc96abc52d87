"""The CURVE keys that processes of a service on different machines prove themselves to each other with."""

from __future__ import annotations

import hashlib
import ipaddress
from pathlib import Path

import zmq
from zmq.utils import z85

from baton_serving.config import ServerConfig
from baton_serving.errors import ConfigError
from baton_serving.handoff.control import CurveKeys
from baton_serving.runtime.bootstrap_access import bootstrap_token


def curve_keys(path: str | None) -> CurveKeys | None:
    """The keys that the workers of a service share, one secret key a line, the one to use first (ConfigError when the
    file holds none)."""
    if path is None:
        return None
    try:
        secrets = Path(path).read_text().split()
        first, *others = [zmq.curve_public(secret.encode()).decode() for secret in secrets]
        return CurveKeys(first, secrets[0], tuple(others))
    except (OSError, ValueError, zmq.ZMQError) as error:
        raise ConfigError(
            f"--disaggregation-curve-key-file {path}: it holds no CURVE secret key of 40 characters ({error})"
        ) from error


def node_keys(config: ServerConfig, host: str) -> CurveKeys | None:
    """What the nodes of a worker meet with at the address `host`: the keys of the service, or one made of its token.

    None on loopback, where neither is needed; ConfigError when there is neither elsewhere.
    """
    keys = curve_keys(config.disaggregation.disaggregation_curve_key_file)
    if keys is not None:
        return keys
    token = bootstrap_token()
    if token is not None:
        secret = z85.encode(hashlib.sha256(b"the nodes of a worker\n" + token.encode()).digest())
        return CurveKeys(zmq.curve_public(secret).decode(), secret.decode())
    if not ipaddress.ip_address(host).is_loopback:
        raise ConfigError(
            f"--dist-init-addr: others can reach {host} too; share a secret between the nodes, by "
            "--disaggregation-curve-key-file or as a token in the file that BATON_TOKEN_FILE names"
        )
    return None
