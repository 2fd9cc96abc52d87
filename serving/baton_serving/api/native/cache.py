"""GET /baton/cache_events: what the KV cache holds, as a stream. docs/internals/cache-events.md describes it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from baton_serving.api.state import service_of
from baton_serving.errors import NotFound


async def cache_events(request: Request) -> Response:
    """A line of JSON for each change, a snapshot first."""
    feed = service_of(request).cache_feed
    if feed is None:
        raise NotFound("this worker keeps no prefixes (--disable-radix-cache), so it has no cache events")
    return StreamingResponse(feed.lines(), media_type="application/x-ndjson")
