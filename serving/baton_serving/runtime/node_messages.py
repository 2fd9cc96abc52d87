"""What the nodes of one worker say to node 0 and it to them, over connections that last as long as the worker."""

from __future__ import annotations

import msgspec

from baton_serving import __version__
from baton_serving.config import ResolvedConfig, ServerConfig
from baton_serving.config.flags import settings
from baton_serving.config.options import ModelOptions
from baton_serving.runtime.channels import Addresses
from baton_serving.runtime.identity import Identity

BEAT = 0.25  # seconds between two signs of life; on one that cannot be sent the end of a connection is seen
SILENCE = 30.0  # seconds without any after which the other side counts as lost

# What nodes may be told differently: what is about one machine, and what node 0 alone uses or tells the others.
_OWN_GROUPS = ("http", "logging")
_OWN_FIELDS = frozenset(
    {
        *("node_rank", "dist_init_addr", "model_path", "revision", "served_model_name", "api_key"),
        *("disaggregation_curve_key_file", "disaggregation_bootstrap_addr", "disaggregation_ib_device"),
    }
)


class Join(msgspec.Struct, frozen=True, tag=True):
    """The first word of a node, with its `shared_flags`."""

    node_rank: int
    flags: dict[str, str]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """All ranks of a node can serve; answered with the same once this holds for all nodes."""


class Leave(msgspec.Struct, frozen=True, tag=True):
    """A node was told to stop: the worker is to drain and end."""


class Beat(msgspec.Struct, frozen=True, tag=True):
    """A sign of life."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """This node cannot take part; `message` says why."""

    message: str


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """What node 0 decided, apart from what is given to each node: the checkpoint is `model`, as node 0 names it."""

    config: ResolvedConfig
    model: ModelOptions
    identity: Identity
    addresses: Addresses


class End(msgspec.Struct, frozen=True, tag=True):
    """The worker ends as it should."""


FromNode = Join | Ready | Leave | Beat
ToNode = Refused | Welcome | Ready | Beat | End


def shared_flags(config: ServerConfig) -> dict[str, str]:
    """What all nodes of a worker must be told alike, by flag; the release among it."""
    shared = (one for one in settings(ServerConfig) if one.group not in _OWN_GROUPS and one.field not in _OWN_FIELDS)
    values = {one.flag.name: getattr(getattr(config, one.group), one.field) for one in shared}
    flags = {name: "not given" if value is None else str(value) for name, value in values.items()}
    return {"the release of Baton": __version__, **flags}
