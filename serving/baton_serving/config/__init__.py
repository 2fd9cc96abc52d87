"""One typed tree of options, from which command line and docs are generated, and the values decided from it."""

from baton_serving.config.argv import add_arguments, config_from_args, config_from_values
from baton_serving.config.facts import HostFacts, ModelFacts
from baton_serving.config.options import ServerConfig
from baton_serving.config.resolve import ResolvedConfig, resolve, resolve_device

__all__ = [
    "HostFacts",
    "ModelFacts",
    "ResolvedConfig",
    "ServerConfig",
    "add_arguments",
    "config_from_args",
    "config_from_values",
    "resolve",
    "resolve_device",
]
