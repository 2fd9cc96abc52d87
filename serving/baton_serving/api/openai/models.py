"""GET /v1/models and /v1/models/{model}."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from baton_serving.api.openai.render import check_model
from baton_serving.api.protocol.openai import ModelCard, ModelList
from baton_serving.api.state import Service, service_of


async def list_models(request: Request) -> Response:
    body = msgspec.json.encode(ModelList([_card(service_of(request))]))
    return Response(body, media_type="application/json")


async def get_model(request: Request) -> Response:
    """The card of one model; names may hold slashes."""
    service = service_of(request)
    check_model(request.path_params["model"], service.options)
    return Response(msgspec.json.encode(_card(service)), media_type="application/json")


def _card(service: Service) -> ModelCard:
    options = service.options
    return ModelCard(
        id=options.served_model_name,
        created=options.created,
        root=service.manager.weights.path,
        max_model_len=service.intake.limits.context_length,
    )
