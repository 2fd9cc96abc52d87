"""Who asks: the seam for API keys."""

from __future__ import annotations

from typing import Protocol

from baton_serving.gateway.http.downstream import Incoming


class Access(Protocol):
    def tenant(self, incoming: Incoming) -> str:
        """Whose request this is; "" when nobody has to say. Raises Unauthorized."""
        ...


class OpenAccess:
    """Everybody may ask."""

    def tenant(self, incoming: Incoming) -> str:
        return ""
