"""gRPC on real sockets, asked by Triton's own client."""

import re
import shutil
import time
from contextlib import contextmanager

import numpy as np
import pytest
import requests

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend

from ..conftest import assert_one_line_error, at_work, edgesdk, held_port, serving, wait_until

grpc = pytest.importorskip("grpc", reason="needs edgesdk[grpc]")
triton = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402

FEATURES = np.random.default_rng(1).random((2, 12, 8, 8), np.float32)


@pytest.fixture(scope="module")
def expected(bundle):
    with OnnxRuntimeBackend((bundle / "server0" / "tail.onnx").read_bytes()) as backend:
        return backend.run({"features": FEATURES})["logits"]


@contextmanager
def _serving(bundle, *options):
    """HTTP's address, gRPC's HOST:PORT, and the process; the line that names them is read by ``serving``."""
    with (
        held_port() as port,
        serving(bundle and bundle / "server0", "--grpc-port", str(port), *options) as (url, process),
    ):
        yield url, f"127.0.0.1:{port}", process


@pytest.fixture(scope="module")
def client(bundle):
    with _serving(bundle, "--max-body-mib", "1") as (_, address, _), triton.InferenceServerClient(address) as client:
        yield client


def _input(array=FEATURES, name="features", datatype="FP32"):
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tail")
    assert client.is_model_ready("tail", "1")
    assert not client.is_model_ready("tail", "2")
    assert not client.is_model_ready("other")  # as Triton answers
    assert client.get_server_metadata().name == "edgesdk"
    model = client.get_model_metadata("tail")
    assert (model.name, list(model.versions), model.platform) == ("tail", ["1"], "onnx_onnxv1")
    (tensor,) = model.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("features", "FP32", [-1, 12, 8, 8])
    (tensor,) = model.outputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("logits", "FP32", [-1, 10])


def test_load_generators_find_a_configuration(client):
    config = client.get_model_config("tail", as_json=True)["config"]
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("tail", "onnxruntime", 8)
    assert config["input"] == [{"name": "features", "data_type": "TYPE_FP32", "dims": ["12", "8", "8"]}]
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": ["10"]}]
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 256
    assert "model_configuration" in client.get_server_metadata().extensions


def _health(address, service=""):
    with grpc.insecure_channel(address) as channel:
        return (
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
        )


def test_a_kubelet_asks_for_health_without_a_token(bundle, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    with _serving(bundle, "--token-file", str(tmp_path / "token")) as (_, address, _):
        for service in ("", "inference.GRPCInferenceService"):
            assert _health(address, service) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            _health(address, "another")
        with triton.InferenceServerClient(address) as client, pytest.raises(Exception, match="bearer token is needed"):
            client.is_server_live()


def test_models_are_loaded_and_unloaded(bundle, tmp_path):
    shutil.copytree(bundle / "server0", tmp_path / "tail" / "3")
    with (
        _serving(None, "--model-repository", str(tmp_path), "--allow-load") as (_, address, _),
        triton.InferenceServerClient(address) as client,
    ):
        (entry,) = client.get_model_repository_index().models
        assert (entry.name, entry.version, entry.state, entry.reason) == ("tail", "3", "READY", "")
        client.unload_model("tail")
        assert not client.is_model_ready("tail")
        with pytest.raises(triton.InferenceServerException, match="no model 'tail' here; it serves none"):
            client.get_model_metadata("tail")
        assert [each.reason for each in client.get_model_repository_index().models] == ["unloaded"]
        client.load_model("tail")
        assert client.is_model_ready("tail", "3")
        for name, parameters, words in (("other", {}, "no model 'other'"), ("tail", {"config": "{}"}, "no parameters")):
            with pytest.raises(triton.InferenceServerException, match=words):
                client.load_model(name, **parameters)


def test_a_server_that_loads_nothing_says_so(client):
    with pytest.raises(triton.InferenceServerException, match="neither loads nor unloads") as error:
        client.unload_model("tail")
    assert error.value.status() == "StatusCode.PERMISSION_DENIED"


def test_raw_inference(client, expected):
    result = client.infer("tail", [_input()], request_id="abc", outputs=[triton.InferRequestedOutput("logits")])
    np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-5)
    answer = result.get_response()
    assert (answer.model_name, answer.model_version, answer.id) == ("tail", "1", "abc")
    assert answer.parameters["compute_us"].int64_param > 0
    assert answer.raw_output_contents


def _request(array):
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="tail", raw_input_contents=[array.tobytes()])
    request.inputs.add(name="features", datatype="FP32", shape=array.shape)
    return request


@pytest.mark.parametrize("copies", [1, 50])  # of 76,800 numbers, which are decoded in a thread and in two pieces
def test_typed_inference_is_answered_typed(client, expected, copies):
    """As a client without numpy sends it."""
    from tritonclient.grpc import service_pb2

    features, expected = (np.concatenate([each] * copies) for each in (FEATURES, expected))
    request = service_pb2.ModelInferRequest(model_name="tail")
    tensor = request.inputs.add(name="features", datatype="FP32", shape=features.shape)
    tensor.contents.fp32_contents.extend(features.ravel().tolist())
    answer = client._client_stub.ModelInfer(request)
    assert not answer.raw_output_contents
    found = np.array(answer.outputs[0].contents.fp32_contents).reshape(answer.outputs[0].shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_statistics_count_both_protocols(bundle):
    import requests

    with (
        _serving(bundle) as (url, address, _),
        triton.InferenceServerClient(address) as client,
    ):
        client.infer("tail", [_input()])
        with pytest.raises(triton.InferenceServerException):
            client.infer("tail", [_input(FEATURES[:, :3])])
        for found in (client.get_inference_statistics("tail"), client.get_inference_statistics()):
            (stats,) = found.model_stats
            assert (stats.name, stats.inference_count, stats.execution_count) == ("tail", 2, 1)
            assert (stats.inference_stats.success.count, stats.inference_stats.fail.count) == (1, 1)
            assert stats.inference_stats.compute_infer.ns > 0
            assert [batch.batch_size for batch in stats.batch_stats] == [2]
        (over_http,) = requests.get(f"{url}/v2/models/stats").json()["model_stats"]
        assert over_http["inference_count"] == 2


def test_calls_of_one_connection_run_together(bundle):
    """Even where no other one has asked for a while, and so the first call may run at once."""
    with _serving(bundle, "--max-batch", "8") as (_, address, _), grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        request = _request(FEATURES[:1]).SerializeToString()
        infer(request, timeout=20)
        time.sleep(1.1)
        for call in [infer.future(request, timeout=20) for _ in range(64)]:
            call.result()
        with triton.InferenceServerClient(address) as client:
            (stats,) = client.get_inference_statistics("tail").model_stats
        assert stats.inference_count == 65
        assert stats.execution_count < 33, stats


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        (lambda c: c.infer("other", [_input()]), "NOT_FOUND", "no model 'other' here"),
        (lambda c: c.infer("tail", [_input()], model_version="2"), "NOT_FOUND", "no version '2'"),
        (lambda c: c.get_model_metadata("other"), "NOT_FOUND", "no model 'other' here"),
        (lambda c: c.get_inference_statistics("other"), "NOT_FOUND", "no model 'other' here"),
        (lambda c: c.infer("tail", [_input(name="x")]), "INVALID_ARGUMENT", "expected tensors ['features'], got ['x']"),
        (lambda c: c.infer("tail", [_input(FEATURES[:0])]), "INVALID_ARGUMENT", "empty"),
        (lambda c: c.infer("tail", [_input(FEATURES.astype(np.float64), datatype="FP64")]), "INVALID_ARGUMENT", "FP64"),
        (lambda c: c.infer("tail", [_input(FEATURES * np.inf)]), "INVALID_ARGUMENT", "not finite"),
        (lambda c: c.infer("tail", [_input(np.array([b"a"], object), datatype="BYTES")]), "INVALID_ARGUMENT", "BYTES"),
        (
            lambda c: c.infer("tail", [_input()], outputs=[triton.InferRequestedOutput("y")]),
            "INVALID_ARGUMENT",
            "there are ['logits']",
        ),
        (
            lambda c: c.infer("tail", [_input()], outputs=[triton.InferRequestedOutput("logits", class_count=3)]),
            "INVALID_ARGUMENT",
            "classification is not served here",
        ),
        (lambda c: c.infer("tail", [_input(np.repeat(FEATURES, 300, 0))]), "RESOURCE_EXHAUSTED", "larger than max"),
        (lambda c: c.infer("tail", [_input()], client_timeout=1e-6), "Deadline Exceeded", ""),
    ],
)  # fmt: skip
def test_a_bad_request_gets_its_code_and_one_line(client, call, code, words):
    with pytest.raises(triton.InferenceServerException) as caught:
        call(client)
    assert code.replace("_", " ").lower() in str(caught.value.status() or caught.value).replace("_", " ").lower()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_hold_here_too(bundle):
    with (
        _serving(bundle, "--max-rate", "2") as (url, address, _),
        triton.InferenceServerClient(address) as client,
    ):
        for _ in range(5):
            assert client.is_server_live()  # as over HTTP, no limit counts it
        client.get_model_metadata("tail")
        requests.get(f"{url}/v2/models/tail", timeout=5).raise_for_status()  # of the same two a second
        with pytest.raises(triton.InferenceServerException, match="more than 2 requests a second"):
            client.infer("tail", [_input()])
        time.sleep(1)
        assert client.infer("tail", [_input()]).as_numpy("logits").shape == (2, 10)


def test_typed_contents_without_end_are_refused(bundle):
    from tritonclient.grpc import service_pb2 as messages  # of the same definition

    request = messages.ModelInferRequest(model_name="tail")
    tensor = request.inputs.add(name="features", datatype="FP32", shape=[2000, 12, 8, 8])
    tensor.contents.fp32_contents.extend([0.0] * (2000 * 768))
    with _serving(bundle) as (_, address, _), grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelInferResponse.FromString,
        )
        with pytest.raises(grpc.RpcError, match="contents of more than 4194304 bytes; send them raw"):
            infer(request, timeout=20)


def test_while_long_typed_contents_are_decoded_others_are_answered(bundle):
    from tritonclient.grpc import service_pb2 as messages

    request = messages.ModelInferRequest(model_name="tail")
    tensor = request.inputs.add(name="features", datatype="INT32", shape=[4_000_000])
    tensor.contents.int_contents.extend([0] * 4_000_000)
    content = request.SerializeToString()
    with (
        _serving(bundle) as (url, address, _),
        grpc.insecure_channel(address) as channel,
        requests.Session() as session,
    ):
        asked = [channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(content) for _ in range(4)]
        answered = 0
        while not all(each.done() for each in asked):
            assert session.get(f"{url}/v2/health/live").status_code == 200
            answered += 1
        assert {each.code() for each in asked} == {grpc.StatusCode.INVALID_ARGUMENT}  # by its shape and type
    assert answered > 10


def test_who_watches_the_health_does_not_hold_a_server_that_stops(bundle):
    import signal

    with _serving(bundle) as (_, address, process), grpc.insecure_channel(address) as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_client_that_gives_up_is_counted(bundle):
    big = np.random.default_rng(0).random((2048, 12, 8, 8), np.float32)
    with _serving(bundle) as (url, address, _), triton.InferenceServerClient(address) as client:
        assert client.is_server_live()  # connected, so that the time is the request's

        def gives_up():
            with pytest.raises(triton.InferenceServerException):  # before or after all of it has arrived
                client.infer("tail", [_input(big)], client_timeout=0.1)
            return 'reason="CANCELED"' in requests.get(f"{url}/metrics", timeout=5).text

        wait_until(gives_up, seconds=20)


def test_tls_and_tokens_hold_here_too(bundle, tmp_path):
    import trustme

    authority = trustme.CA()
    party = authority.issue_cert("127.0.0.1")
    camera = authority.issue_cert("camera@example.org")
    files = {}
    for name, blob in (("ca", authority.cert_pem), ("cert", party.cert_chain_pems[0]), ("key", party.private_key_pem),
                       ("camera", camera.cert_chain_pems[0]), ("camera-key", camera.private_key_pem)):  # fmt: skip
        files[name] = tmp_path / name
        files[name].write_bytes(blob.bytes())
    (tmp_path / "token").write_text("secret\n")
    wants = ("--tls-cert", "cert", "--tls-key", "key", "--tls-client-ca", "ca", "--token-file", "token")
    options = [each if each.startswith("--") else str(tmp_path / each) for each in wants]
    with _serving(bundle, *options) as (_, address, _):
        shown = {"ssl": True, "root_certificates": str(files["ca"])}
        own = {"private_key": str(files["camera-key"]), "certificate_chain": str(files["camera"])}
        with triton.InferenceServerClient(address, **shown, **own) as client:
            assert client.infer("tail", [_input()], headers={"authorization": "Bearer secret"}).as_numpy("logits").any()
            for headers in ({"authorization": "Bearer guess"}, {}):
                with pytest.raises(triton.InferenceServerException, match="bearer token is needed"):
                    client.infer("tail", [_input()], headers=headers)
        with triton.InferenceServerClient(address, **shown) as client, pytest.raises(triton.InferenceServerException):
            client.infer("tail", [_input()], headers={"authorization": "Bearer secret"}, client_timeout=5)


def test_a_signal_drains_it(bundle):
    import signal
    import threading

    with _serving(bundle) as (_, address, process), triton.InferenceServerClient(address) as client:
        client.infer("tail", [_input()])
        big = np.random.default_rng(0).random((2048, 12, 8, 8), np.float32)
        shapes = []
        thread = threading.Thread(
            target=lambda: shapes.append(client.infer("tail", [_input(big)]).as_numpy("logits").shape)
        )
        with at_work(process.pid):
            thread.start()
        assert not shapes
        process.send_signal(signal.SIGTERM)
        thread.join()
        assert shapes == [(2048, 10)]
        assert process.wait(20) == 0


def test_the_port_is_named_and_one_in_use_is_refused(bundle):
    with _serving(bundle) as (_, address, _):
        port = address.rpartition(":")[2]
        done = edgesdk("serve", bundle / "server0", "--port", "0", "--grpc-port", port)
        assert_one_line_error(done, "cannot listen", "in use")
    assert re.fullmatch(r"\d+", port)
