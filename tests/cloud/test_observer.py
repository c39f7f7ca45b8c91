"""What a server tells of its requests: lines of the log, and spans that continue the device's."""

import gzip
import json
import re
import traceback
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
import requests
from PIL import Image

from cloud.logs import without_numbers
from edge_sdk import oip
from edge_sdk.bundle import Cost, Manifest, Part, write_bundle
from edge_sdk.client import Client
from edge_sdk.errors import BackendError
from edge_sdk.tensors import TensorSpec
from edge_sdk.tracing import Spans

from ..conftest import answering_by, assert_one_line_error, edgesdk, edgesdk_here, held_port, serving

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


def _ids(lines):
    """Of each line what happened, the status and the id."""
    return [(each["message"], each["status"], each.get("request_id")) for each in map(json.loads, lines)]


def test_a_request_whose_body_says_no_id_has_that_of_its_header(bundle, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret-token")
    options = ("--log-format", "json", "--log-requests", "--token-file", str(tokens))
    with serving(bundle / "server0", *options) as (url, process):
        infer, right = f"{url}/v2/models/tail/infer", {"Authorization": "Bearer secret-token"}
        for request_id, named in (("own", {"X-Request-Id": "header's"}), ("", {"X-Request-Id": "header's"}), ("", {})):
            headers, chunks = oip.encode_request({"features": FEATURES}, request_id)
            requests.post(infer, data=b"".join(chunks), headers={**headers, **right, **named}).raise_for_status()
        for headers in ({**right, "X-Request-Id": "senseless"}, {"X-Request-Id": "x" * 200}, {}):
            requests.post(infer, data=b"no", headers=headers)
        unloaded = f"{url}/v2/repository/models/tail/unload"
        assert requests.post(unloaded, headers={**right, "X-Request-Id": "not allowed"}).status_code == 403
        lines = _lines(process)
    assert _ids(lines) == [
        ("infer", 200, "own"), ("infer", 200, "header's"), ("infer", 200, ""), ("infer", 400, "senseless"),
        ("refused", 401, "x" * 100), ("refused", 401, None), ("refused", 403, "not allowed"),
    ]  # fmt: skip


def test_over_grpc_too(bundle):
    grpc = pytest.importorskip("grpc", reason="needs edgesdk[grpc]")
    options = ("--log-format", "json", "--log-requests")
    with (
        held_port() as port,
        serving(bundle / "server0", "--grpc-port", str(port), *options) as (_, process),
    ):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for content in (b"\xff", b"\x0a\x04tail", b"\x0a\x04tail\x1a\x03own"):
                for metadata in ((("x-request-id", "header's"),), ()):
                    with pytest.raises(grpc.RpcError):
                        infer(content, timeout=20, metadata=metadata)
        lines = _lines(process)
    assert _ids(lines) == [
        ("refused", "INVALID_ARGUMENT", "header's"), ("refused", "INVALID_ARGUMENT", None),
        ("infer", 400, "header's"), ("infer", 400, ""), ("infer", 400, "own"), ("infer", 400, "own"),
    ]  # fmt: skip


def _fails_on_large_values(folder):
    """A server's folder whose tail takes rows of a table by the feature's value: there are ten."""
    import onnx

    table = onnx.numpy_helper.from_array(np.eye(10, dtype=np.float32), "table")
    nodes = [
        onnx.helper.make_node("Cast", ["features"], ["index"], to=onnx.TensorProto.INT64),
        onnx.helper.make_node("Gather", ["table", "index"], ["logits"], axis=0),
    ]
    taken = onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["n"])
    given = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 10])
    graph = onnx.helper.make_graph(nodes, "tail", [taken], [given], [table])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    specs = (TensorSpec("features", "FP32", (None,)),), (TensorSpec("logits", "FP32", (None, 10)),)
    part = Part("tail", "server0", *specs, "tail.onnx", Cost(0, 0, 0, 0, ()))
    manifest = Manifest(format_version=1, bundle_id="0" * 64, party="server0", parts=(part,), defense="none")
    write_bundle(folder, {"server0": manifest}, {"server0": {"tail.onnx": model.SerializeToString()}})
    return folder / "server0"


VALUE = 8388607.5
"""A float32 to the last digit, which no port, process or time of this test is."""

TOLD = re.compile(r"8\W?388\W?60")
"""It in a text, rounded or written otherwise."""


def _bodies():
    """JSON that holds the value: right, and wrong in all the ways that are told of it."""
    tensor = {"name": "features", "shape": [2], "datatype": "FP32", "data": [1.0, VALUE]}
    for changes in (
        {},  # for which the tail fails
        {"shape": [3]},
        {"shape": [1, 2], "data": [[1.0, VALUE]]},
        {"shape": [1, 2], "data": [1.0, [VALUE]]},
        {"data": [1.0, VALUE * 1e38]},
        {"data": [1.0, int(VALUE) * 10**400]},
        {"data": [1.0, str(VALUE)]},
        {"datatype": "INT32"},
        {"datatype": "INT8", "data": [1, int(VALUE)]},
        {"datatype": "UINT64", "data": [1, -int(VALUE)]},
        {"datatype": "BOOL", "data": [True, int(VALUE)]},
        {"datatype": "FP16"},
        {"name": "x"},
        {"data": VALUE},
        {"data": {"0": VALUE}},
    ):
        yield json.dumps({"inputs": [{**tensor, **changes}]}).encode()
    yield json.dumps({"inputs": [tensor]}).encode()[:-4]
    yield json.dumps({"inputs": [tensor]}).encode() + str(VALUE).encode()
    yield str(VALUE).encode()


def _calls(messages):
    """The same in the typed contents of gRPC, and raw."""
    for datatype, contents, values, shape in (
        ("FP32", "fp32_contents", [1.0, VALUE], [2]),
        ("FP32", "fp32_contents", [1.0, VALUE], [3]),
        ("FP32", "fp32_contents", [VALUE, float("inf")], [2]),
        ("FP32", "fp64_contents", [1.0, VALUE], [2]),
        ("FP64", "fp64_contents", [1.0, VALUE], [2]),
        ("INT8", "int_contents", [1, int(VALUE)], [2]),
        ("UINT16", "uint_contents", [1, int(VALUE)], [2]),
    ):
        call = messages.ModelInferRequest(model_name="tail")
        tensor = call.inputs.add(name="features", datatype=datatype, shape=shape)
        getattr(tensor.contents, contents).extend(values)
        yield call
    for shape in ([2], [3]):
        call = messages.ModelInferRequest(model_name="tail", raw_input_contents=[np.float32([1, VALUE]).tobytes()])
        call.inputs.add(name="features", datatype="FP32", shape=shape)
        yield call


@pytest.mark.parametrize("form", ["text", "json"])
def test_whatever_is_told_no_value_of_a_tensor_is(tmp_path, form):
    """Not of a request that is answered, nor of one that is refused, nor by what fails over it."""
    grpc = pytest.importorskip("grpc", reason="needs edgesdk[grpc]")
    from tritonclient.grpc import service_pb2 as messages

    folder = _fails_on_large_values(tmp_path / "b")
    options = ["--log-requests", "--log-format", form]
    codes = Counter()
    with (
        held_port() as port,
        serving(folder, *options, "--grpc-port", str(port)) as (url, process),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        infer = f"{url}/v2/models/tail/infer"
        fine = {"inputs": [{"name": "features", "shape": [1], "datatype": "FP32", "data": [3.0]}]}
        assert requests.post(infer, json=fine).json()["outputs"][0]["data"] == np.eye(10)[3].tolist()
        whole = [(body, {}) for body in _bodies()]
        chunked = [(iter([body]), {}) for body in _bodies()]
        packed = [(gzip.compress(body), {"Content-Encoding": "gzip"}) for body in _bodies()]
        headers, chunks = oip.encode_request({"features": np.float32([1, VALUE])})
        for body, given in (*whole, *chunked, *packed, (b"".join(chunks), headers), (chunks[1], headers)):
            answer = requests.post(infer, data=body, headers=given)
            codes[answer.status_code] += 1
            assert not TOLD.search(answer.text)
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
        )
        for call in _calls(messages):
            with pytest.raises(grpc.RpcError) as refused:
                ask(call, timeout=20)
            codes[refused.value.code().name] += 1
            assert not TOLD.search(refused.value.details())
        process.terminate()
        log = process.stderr.read()
    assert codes == {500: 4, 400: 3 * len(list(_bodies())) - 2, "INTERNAL": 2, "INVALID_ARGUMENT": 7}
    assert log.count("ONNX Runtime failed") >= 6  # why it did is told
    assert "Gather" in log
    assert not TOLD.search(log)


def test_of_an_error_all_is_told_but_numbers():
    def fail():
        try:
            raise ValueError("node conv_12 of FP32, idx=-1.5e+07 of [3, .5]; 2x4, 1e9us")
        except ValueError as error:
            raise BackendError("7 failed") from error

    with pytest.raises(BackendError) as caught:
        fail()
    told = "".join(traceback.format_exception(without_numbers(caught.value)))
    assert "\nValueError: node conv_12 of FP32, idx=# of [#, #]; #x4, #us\n" in told
    assert told.endswith("\nedge_sdk.errors.BackendError: # failed\n")
    assert told.count(", in fail\n") == 2
    assert str(caught.value) == "7 failed"


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


def test_a_devices_spans_hold_no_values_of_what_failed(monkeypatch):
    trace = pytest.importorskip("opentelemetry.trace", reason="needs edgesdk[trace]")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = Spans()
    monkeypatch.setattr(spans, "_trace", trace)
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("edgesdk"))
    with pytest.raises(BackendError), spans.span("encode"):
        raise BackendError("failed at feature 3.14159 of Conv_7")
    with pytest.raises(BackendError), spans.request("ask", trace.INVALID_SPAN, {}, apart=True):
        raise BackendError("failed at feature 3.14159 of Conv_7")
    finished = exporter.get_finished_spans()
    assert len(finished) == 2
    for span in finished:
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.status.description == "BackendError: failed at feature # of Conv_7"
        assert not span.events
