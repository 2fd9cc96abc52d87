"""Where a worker's bootstrap servers are, and the secret for them."""

from __future__ import annotations

import os
from pathlib import Path

from baton_bootstrap.auth import read_token
from baton_bootstrap.errors import BootstrapError
from baton_serving.config import ResolvedConfig
from baton_serving.errors import ConfigError

TOKEN_VARIABLE = "BATON_TOKEN_FILE"  # set by a deployment: the secret that a service's own parts share


def bootstrap_token() -> str | None:
    """The secret for the bootstrap server, if the deployment has one (ConfigError when it cannot be read)."""
    path = os.environ.get(TOKEN_VARIABLE)
    try:
        return read_token(Path(path) if path else None)
    except BootstrapError as error:
        raise ConfigError(str(error)) from error


def bootstrap_addresses(config: ResolvedConfig) -> list[str]:
    return [f"{host}:{port}" for host, port in config.bootstrap_addrs]
