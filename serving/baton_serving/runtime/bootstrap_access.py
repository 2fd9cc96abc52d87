"""Where a worker's bootstrap servers are, and the secret and the certificates for them."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from baton_bootstrap.auth import read_token
from baton_bootstrap.client import assigned
from baton_bootstrap.errors import BootstrapError
from baton_bootstrap.records import Goal
from baton_bootstrap.tls import TlsFiles, tls_files
from baton_serving.config import ResolvedConfig, ServerConfig
from baton_serving.errors import ConfigError
from baton_serving.runtime.identity import GROUP_VARIABLE, ID_VARIABLE

TOKEN_VARIABLE = "BATON_TOKEN_FILE"  # set by a deployment: the secret that a service's own parts share


def bootstrap_token() -> str | None:
    """The secret for the bootstrap server, if the deployment has one (ConfigError when it cannot be read)."""
    path = os.environ.get(TOKEN_VARIABLE)
    try:
        return read_token(Path(path) if path else None)
    except BootstrapError as error:
        raise ConfigError(str(error)) from error


def tls_of(config: ServerConfig) -> TlsFiles | None:
    """The certificates of this worker, if it has any (ConfigError for half a pair)."""
    given = config.http
    try:
        return tls_files(given.ssl_certfile, given.ssl_keyfile, given.ssl_ca_certs)
    except BootstrapError as error:
        raise ConfigError(str(error)) from error


def bootstrap_addresses(config: ResolvedConfig) -> list[str]:
    return [f"{host}:{port}" for host, port in config.bootstrap_addrs]


def as_assigned(config: ServerConfig) -> ServerConfig:
    """`config` with the weights that the bootstrap server assigns to this worker, or to new ones of its group: those to
    which it was to switch before it was started again. Unchanged without an assignment, or a name by which it could
    have one.
    """
    names = [os.environ[name] for name in (ID_VARIABLE, GROUP_VARIABLE) if os.environ.get(name)]
    meeting = config.disaggregation.disaggregation_bootstrap_addr
    if not names or not meeting:
        return config
    found = asyncio.run(assigned(meeting, names, token=bootstrap_token(), tls=tls_of(config)))
    if found is None or found.goal is not Goal.SWITCH:
        return config
    served = config.api.served_model_name or config.model.model_path
    return replace(
        config,
        model=replace(config.model, model_path=found.model, revision=found.model_revision or None),
        api=replace(config.api, served_model_name=served),
    )
