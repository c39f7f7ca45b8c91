"""What a server tells of its requests: lines of the log, and spans that continue the device's."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
import requests
from PIL import Image

from edge_sdk import oip
from edge_sdk.client import Client

from ..conftest import answering_by, assert_one_line_error, edgesdk, edgesdk_here, serving

FEATURES = np.random.default_rng(1).random((2, 12, 8, 8), np.float32)


def _lines(process):
    process.terminate()
    return process.stderr.read().splitlines()


def test_each_request_is_a_json_line_without_its_values(bundle):
    with serving(bundle / "server0", "--log-format", "json", "--log-requests") as (url, process):
        with Client(url) as client:
            client.infer("tail", {"features": FEATURES}, 'my "id"\n{}')
        trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        requests.post(f"{url}/v2/models/tail/infer", data=b"no", headers=trace)
        requests.post(f"{url}/v2/models/tail/infer", data=b"no", headers={"Content-Encoding": "br"})
        lines = _lines(process)
    answered, refused, encoded = found = [json.loads(line) for line in lines]  # the ready line was read before
    for each in found:
        assert (each["logger"], each["level"], each["message"]) == ("edgesdk.requests", "INFO", "infer")
        assert (each["model"], each["version"]) == ("tail", "1")
        assert each["client"].startswith("127.0.0.1:")
        assert each["duration_us"] > 0
    assert (answered["status"], answered["request_id"], answered["rows"]) == (200, 'my "id"\n{}', 2)
    assert 0 < answered["compute_us"] <= answered["duration_us"]
    assert "trace_id" not in answered
    assert (refused["status"], refused["trace_id"]) == (400, "0af7651916cd43dd8448eb211c80319c")
    assert "not an inference request" in refused["error"]
    assert encoded["status"] == 415
    values = {f"{value:.4f}" for value in FEATURES.ravel()}
    assert not any(value in line for line in lines for value in values)


def test_a_line_for_people_is_one_line_whatever_the_client_sends(bundle, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret-token")
    with serving(bundle / "server0", "--log-requests", "--token-file", str(tokens)) as (url, process):
        headers, chunks = oip.encode_request({"features": FEATURES}, "a\nINFO edgesdk.requests: forged\u2028x")
        infer = f"{url}/v2/models/tail/infer"
        right = {"Authorization": "Bearer secret-token"}
        assert requests.post(infer, data=b"".join(chunks), headers={**headers, **right}).status_code == 200
        assert requests.post(infer, data=b"x", headers={"Authorization": "Bearer wrong-token"}).status_code == 401
        lines = _lines(process)
    assert [line.split(" ")[1:4] for line in lines] == [
        ["INFO", "edgesdk.requests:", "infer"], ["INFO", "edgesdk.requests:", "refused"],
    ]  # fmt: skip
    assert r'request_id="a\nINFO edgesdk.requests: forged\u2028x"' in lines[0]
    assert 'status=401 client="127.0.0.1' in lines[1]
    assert not any("token" in line.replace("edgesdk", "") for line in lines)


def test_without_being_asked_requests_are_not_told(bundle):
    with serving(bundle / "server0") as (url, process):
        with Client(url) as client:
            client.infer("tail", {"features": FEATURES})
        assert _lines(process) == []


@contextmanager
def _collector():
    """An OTLP endpoint, and the spans that came there with their services."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                spans.extend((service, span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with answering_by(Handler) as url:
        yield url, spans


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def _by_name(spans, service):
    return {span.name: span for found, span in spans if found == service}


def test_a_servers_span_continues_the_devices(bundle, photo):
    with (
        _collector() as (endpoint, spans),
        serving(bundle / "server0", "--otlp-endpoint", endpoint) as (url, process),
    ):
        done = edgesdk("run", bundle / "edge", photo, "--server", url, "--otlp-endpoint", endpoint)
        assert done.returncode == 0, done.stderr
        process.terminate()
        process.wait()
    device, server = _by_name(spans, "edgesdk-device"), _by_name(spans, "edgesdk-server")
    assert device.keys() == {"predict", "encode", "ask tail"}
    assert server.keys() == {"infer tail", "decode", "queue", "compute"}
    root, ask, infer = device["predict"], device["ask tail"], server["infer tail"]
    assert len({span.trace_id for _, span in spans}) == 1
    assert device["encode"].parent_span_id == ask.parent_span_id == root.span_id
    assert infer.parent_span_id == ask.span_id
    assert {server[name].parent_span_id for name in ("decode", "queue", "compute")} == {infer.span_id}
    assert ask.start_time_unix_nano <= infer.start_time_unix_nano
    assert infer.end_time_unix_nano <= ask.end_time_unix_nano
    for name in ("decode", "queue", "compute"):
        assert server[name].start_time_unix_nano <= server[name].end_time_unix_nano <= infer.end_time_unix_nano
    attributes = {each.key: each.value for each in infer.attributes}
    assert attributes["model"].string_value == "tail"
    assert attributes["rows"].int_value == 1


def test_each_worker_sends_its_spans(bundle):
    with (
        _collector() as (endpoint, spans),
        serving(bundle / "server0", "--workers", "2", "--otlp-endpoint", endpoint) as (url, process),
    ):
        for _ in range(4):  # on a connection each, of whichever worker
            requests.post(f"{url}/v2/models/tail/infer", data=b"no")
        process.terminate()
        assert process.wait(30) == 0
    assert [(service, span.name) for service, span in spans] == [("edgesdk-server", "infer tail")] * 4


def test_servers_of_shares_cannot_tell_by_the_trace_which_belong_together(shares_bundle, photo):
    from contextlib import ExitStack

    with _collector() as (endpoint, spans), ExitStack() as stack:
        started = [
            stack.enter_context(serving(shares_bundle / f"server{k}", "--otlp-endpoint", endpoint)) for k in range(4)
        ]
        servers = [word for url, _ in started for word in ("--server", url)]
        done = edgesdk("run", shares_bundle / "edge", photo, *servers, "--otlp-endpoint", endpoint)
        assert done.returncode == 0, done.stderr
        for _, process in started:
            process.terminate()
            process.wait()
    device = _by_name(spans, "edgesdk-device")
    seen = [span.trace_id for service, span in spans if service == "edgesdk-server" and span.name.startswith("infer")]
    assert len(set(seen)) == 4
    assert device["predict"].trace_id not in seen
    asked = [device[f"ask tail{k}"] for k in range(4)]
    assert {span.trace_id for span in asked} == set(seen)
    for span in asked:  # who has the device's spans can put them together again
        assert [link.span_id for link in span.links] == [device["predict"].span_id]
    assert device["fusion"].parent_span_id == device["predict"].span_id


def test_an_applications_baggage_does_not_go_to_several_servers():
    from opentelemetry import baggage, context, propagate, trace
    from opentelemetry.sdk.trace import TracerProvider

    from edge_sdk.tracing import Spans

    assert not Spans().used  # imported, and no provider set
    trace.set_tracer_provider(TracerProvider())
    spans = Spans()
    token = context.attach(baggage.set_baggage("image", "42"))
    try:
        with spans.span("predict"):
            for apart, sent in ((True, False), (False, True)):
                carrier: dict[str, str] = {}
                with spans.request("ask", spans.current(), {}, apart=apart):
                    propagate.inject(carrier)
                assert ("baggage" in carrier) == sent
                assert "traceparent" in carrier
        assert baggage.get_baggage("image") == "42"
    finally:
        context.detach(token)
        trace._TRACER_PROVIDER = None
        trace._TRACER_PROVIDER_SET_ONCE._done = False


def test_a_failed_request_is_a_failed_span(bundle):
    with (
        _collector() as (endpoint, spans),
        serving(bundle / "server0", "--otlp-endpoint", endpoint) as (url, process),
    ):
        requests.post(f"{url}/v2/models/tail/infer", data=b"no")
        process.terminate()
        process.wait()
    ((_, span),) = spans
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert "not an inference request" in span.status.message


def test_what_is_no_endpoint_is_refused(bundle, photo):
    done = edgesdk_here("run", bundle / "edge", photo, "--server", "http://127.0.0.1:1", "--otlp-endpoint", "host:1")
    assert_one_line_error(done, "'host:1' is no OTLP endpoint")
