"""Spans of gateway, prefill and decode in one trace, as a real OTLP endpoint gets them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import grpc
import pytest
from support.api_world import api_world, says
from support.gateway_over import gateway_before
from support.http import HELLO, post

from baton_bootstrap.records import Role
from baton_serving.gateway.spans import RequestSpans as GatewaySpans
from baton_serving.runtime.messages import Timings
from baton_serving.runtime.request_spans import RequestSpans, stages_of
from baton_serving.tracing import Stage, Tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT = f"00-{TRACE}-b7ad6b7169203331-01"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Collector:
    """What was exported."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def take(self, data: bytes) -> bytes:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb

        self.requests.append(pb.ExportTraceServiceRequest.FromString(data))
        answer: bytes = pb.ExportTraceServiceResponse().SerializeToString()
        return answer

    @property
    def spans(self) -> dict[str, Any]:
        """By service and name."""
        return {
            f"{_service(group)} {span.name}": span
            for request in self.requests
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        }


def _service(group: Any) -> str:
    return str(next(one.value.string_value for one in group.resource.attributes if one.key == "service.name"))


@pytest.fixture(params=["grpc", "http"])
def collector(request: pytest.FixtureRequest) -> Iterator[tuple[Collector, str]]:
    """A collector and its endpoint."""
    collector = Collector()
    if request.param == "grpc":
        server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(lambda data, _: collector.take(data))
        service, method = EXPORT[1:].split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield collector, f"127.0.0.1:{port}"
        server.stop(None)
        return

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            answer = collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=web.serve_forever, daemon=True).start()
    yield collector, f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()


async def test_gateway_prefill_and_decode_are_one_trace(collector: tuple[Collector, str]) -> None:
    got, endpoint = collector
    tracings = [Tracing(name, endpoint) for name in ("gateway", "p", "d")]
    prefill, decode = RequestSpans(tracings[1], lambda: "prefill"), RequestSpans(tracings[2], lambda: "decode")
    async with (
        api_world(says("hello"), observers=(prefill,)) as first,
        api_world(says("hello"), observers=(decode,)) as second,
        gateway_before(
            first.url,
            second.url,
            model="tiny",
            roles=(Role.PREFILL, Role.DECODE),
            spans=GatewaySpans(tracings[0]),
        ) as url,
    ):
        body = {"model": "tiny", "messages": HELLO}
        answer = await post(f"{url}/v1/chat/completions", body, headers={"traceparent": CLIENT})
        assert answer.status_code == 200
        assert (await post(f"{url}/v1/chat/completions", [], headers={"traceparent": CLIENT})).status_code == 400
        await first.manager.wait_idle()
    for tracing in tracings:
        tracing.flush()
        tracing.close()
    gateway, legs = got.spans["gateway baton.gateway"], [got.spans["p baton.prefill"], got.spans["d baton.decode"]]
    for span in (gateway, *legs):
        assert span.trace_id.hex() == TRACE
    assert gateway.parent_span_id.hex() == CLIENT.split("-")[2]
    mine = [span for span in _all(got) if span.span_id in {leg.parent_span_id for leg in legs}]
    assert [span.name for span in mine] == ["baton.gateway"]
    attributes = {one.key: one.value for one in mine[0].attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["baton.pair"].string_value == f"{first.url}>{second.url}"
    assert len([span for span in _all(got) if span.name == "baton.gateway"]) == 2  # the refused request has one too
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in _all(got))


def _all(collector: Collector) -> list[Any]:
    return [
        span
        for request in collector.requests
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def test_stages_are_those_that_were_passed() -> None:
    timings = Timings(queued=1, scheduled=2, prefilled=5, first_token=6, finished=9)
    assert stages_of(timings) == (Stage("queue", 1, 2), Stage("prefill", 2, 5), Stage("decode", 6, 9))
    assert stages_of(None) == ()
