"""What the routes of one app share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from baton_serving.api.options import AppOptions
from baton_serving.runtime.cache_feed import CacheFeed
from baton_serving.runtime.intake import Intake
from baton_serving.runtime.metrics import Metrics
from baton_serving.runtime.tokenizer_manager import TokenizerManager
from baton_serving.runtime.updater import Updater


@dataclass(frozen=True)
class Service:
    """The pipeline behind the routes and how to describe it. `cache_feed` is None without a prefix cache."""

    manager: TokenizerManager
    intake: Intake
    options: AppOptions
    metrics: Metrics
    updater: Updater
    cache_feed: CacheFeed | None = None


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)
