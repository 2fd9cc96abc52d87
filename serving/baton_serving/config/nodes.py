"""Options of a worker whose ranks are spread over several nodes."""

from __future__ import annotations

from dataclasses import dataclass

from baton_serving.config.flags import option


@dataclass(frozen=True)
class NodeOptions:
    """Workers over several nodes."""

    nnodes: int = option("--nnodes", default=1, help="Nodes that the ranks of one worker are spread over evenly.")
    node_rank: int = option(
        "--node-rank", default=0, help="Which of the nodes this one is; node 0 serves, the others compute for it."
    )
    dist_init_addr: str | None = option(
        "--dist-init-addr",
        "--nccl-init-addr",
        default=None,
        help="HOST:PORT of node 0, at which the nodes of a worker meet; node 0 opens further ports besides.",
        auto="none: one node",
    )

    def ranks(self, tp_size: int) -> range:
        """The tensor parallel ranks that run on this node."""
        count = tp_size // self.nnodes
        return range(self.node_rank * count, (self.node_rank + 1) * count)
