"""A real server process, spoken to over real sockets."""

import gzip
import json
import re
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk import oip
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.client import Client

from ..conftest import EDGESDK, assert_one_line_error, at_work, edgesdk, serving

FEATURES = np.random.default_rng(1).random((2, 12, 8, 8), np.float32)


@pytest.fixture(scope="module")
def expected(bundle):
    with OnnxRuntimeBackend((bundle / "server0" / "tail.onnx").read_bytes()) as backend:
        return backend.run({"features": FEATURES})["logits"]


def test_health_and_metadata(server):
    assert requests.get(f"{server}/v2/health/live").json() == {"live": True}
    assert requests.get(f"{server}/v2/health/ready").json() == {"ready": True}
    metadata = requests.get(f"{server}/v2").json()
    assert metadata["name"] == "edgesdk"
    assert metadata["extensions"] == [
        "binary_tensor_data", "statistics", "model_configuration", "model_repository",
    ]  # fmt: skip
    for path in ("tail", "tail/versions/1"):
        assert requests.get(f"{server}/v2/models/{path}/ready").json() == {"name": "tail", "ready": True}
        model = requests.get(f"{server}/v2/models/{path}").json()
        assert model["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 12, 8, 8]}]
        assert model["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
        assert model["versions"] == ["1"]


def test_binary_inference(server, expected):
    with Client(server) as client:
        outputs, timing = client.infer("tail", {"features": FEATURES}, "abc")
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    assert 0 <= timing.queue_ms < timing.round_trip_ms
    assert 0 < timing.compute_ms < timing.round_trip_ms


@pytest.mark.parametrize("copies", [1, 50])  # of 76,800 numbers, which are decoded in a thread and in two pieces
@pytest.mark.parametrize("nested", [True, False])
def test_json_inference(server, expected, nested, copies):
    features, expected = (np.concatenate([each] * copies) for each in (FEATURES, expected))
    shape, data = features.shape, features.tolist() if nested else features.ravel().tolist()
    request = {"id": "7", "inputs": [{"name": "features", "shape": shape, "datatype": "FP32", "data": data}]}
    response = requests.post(f"{server}/v2/models/tail/infer", json=request)
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tail", "1", "7")
    assert answer["parameters"].keys() == {"queue_us", "compute_us"}
    (output,) = answer["outputs"]
    assert (output["name"], output["shape"], output["datatype"]) == ("logits", [2 * copies, 10], "FP32")
    np.testing.assert_allclose(np.reshape(output["data"], expected.shape), expected, atol=1e-5)


def test_the_official_triton_client_gets_the_same_logits(server, expected):
    import tritonclient.http as triton

    client = triton.InferenceServerClient(server.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tail")
    assert client.get_model_metadata("tail")["inputs"][0]["shape"] == [-1, 12, 8, 8]
    for binary in (True, False):
        tensor = triton.InferInput("features", [2, 12, 8, 8], "FP32")
        tensor.set_data_from_numpy(FEATURES, binary_data=binary)
        wanted = triton.InferRequestedOutput("logits", binary_data=binary)
        result = client.infer("tail", [tensor], outputs=[wanted], request_id="t")
        np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-5)
        assert result.get_response()["id"] == "t"
    with pytest.raises(triton.InferenceServerException, match="no model 'other' here"):
        client.infer("other", [tensor])
    client.close()


@pytest.fixture
def own_server(bundle):
    """A server that no other test asks."""
    with serving(bundle / "server0", "--max-waiting", "1", "--max-batch", "4") as (url, _):
        yield url


def test_what_was_done_is_counted(own_server):
    with Client(own_server) as client:
        for rows in (1, 2, 2):
            client.infer("tail", {"features": np.repeat(FEATURES[:1], rows, 0)})
    requests.post(f"{own_server}/v2/models/tail/infer", data=b"no")
    for path in ("models/stats", "models/tail/stats", "models/tail/versions/1/stats"):
        (found,) = requests.get(f"{own_server}/v2/{path}").json()["model_stats"]
        assert (found["name"], found["version"]) == ("tail", "1")
        assert abs(found["last_inference"] / 1000 - time.time()) < 60
        assert (found["inference_count"], found["execution_count"]) == (5, 3)
        each = found["inference_stats"]
        assert {name: tally["count"] for name, tally in each.items()} == {
            "success": 3, "fail": 1, "queue": 3, "compute_input": 3, "compute_infer": 3, "compute_output": 3,
            "cache_hit": 0, "cache_miss": 0,
        }  # fmt: skip
        parts = sum(each[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
        assert 0 < parts <= each["success"]["ns"]
        assert [(b["batch_size"], b["compute_infer"]["count"]) for b in found["batch_stats"]] == [(1, 1), (2, 2)]


def test_prometheus_reads_the_same_by_tritons_names(own_server):
    from prometheus_client.parser import text_string_to_metric_families

    with Client(own_server) as client:
        client.infer("tail", {"features": FEATURES})
        client.infer("tail", {"features": FEATURES[:1]})
    requests.post(f"{own_server}/v2/models/tail/infer", data=b"no")
    response = requests.get(f"{own_server}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            assert (sample.labels["model"], sample.labels["version"]) == ("tail", "1")
            rest = {k: v for k, v in sample.labels.items() if k not in ("model", "version")}
            samples[(sample.name, *rest.values())] = sample.value
    assert samples["nv_inference_request_success",] == 2
    assert samples["nv_inference_count",] == 3
    assert samples["nv_inference_exec_count",] == 2
    assert samples["nv_inference_pending_request_count",] == 0
    assert samples["nv_inference_request_failure", "OTHER"] == 1
    assert samples["nv_inference_compute_infer_duration_us",] > 0
    assert samples["edgesdk_request_seconds_count",] == samples["edgesdk_request_seconds_bucket", "+Inf"] == 2
    assert samples["edgesdk_batch_rows_bucket", "1"] == 1
    assert samples["edgesdk_batch_rows_bucket", "2"] == samples["edgesdk_batch_rows_count",] == 2
    assert samples["edgesdk_batch_rows_sum",] == 3


def test_a_body_that_is_a_tensor_and_nothing_else(server, expected):
    """Triton's raw binary request: one row, answered in binary."""
    url, name = f"{server}/v2/models/tail/infer", "Inference-Header-Content-Length"
    response = requests.post(url, data=FEATURES[:1].tobytes(), headers={name: "0"})
    assert response.status_code == 200
    answer = oip.decode_response(response.content, response.headers[name])
    np.testing.assert_allclose(answer.outputs["logits"], expected[:1], atol=1e-5)
    short = requests.post(url, data=FEATURES[:1].tobytes()[:-4], headers={name: "0"})
    assert short.status_code == 400
    assert "binary_data_size 3068" in short.json()["error"]


def test_what_is_no_http_is_told_so_in_the_protocols_shape(server):
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(b"hello\r\n\r\n")
        head, _, body = raw.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/json" in head
    assert json.loads(body).keys() == {"error"}


def _numbers(count):
    """Valid JSON; of a wrong shape, so that none of it is run."""
    return b'{"inputs":[{"name":"features","shape":[%d],"datatype":"INT32","data":[%b0]}]}' % (
        count,
        b"0," * (count - 1),
    )


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (gzip.compress(bytes(60 * 2**20)), {"Content-Encoding": "gzip"}),  # 64 KiB of gzip can be 64 MiB
        (gzip.compress(_numbers(2_000_000)), {"Content-Encoding": "gzip"}),
        (_numbers(2_000_000), {}),
        (_numbers(2_000_000), {oip.HEADER_LENGTH: str(len(_numbers(2_000_000)))}),
    ],
    ids=["zeros", "packed JSON", "JSON", "JSON of a stated length"],
)
def test_while_a_long_body_is_unpacked_and_decoded_others_are_answered(bundle, body, headers):
    with serving(bundle / "server0") as (url, _), ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(requests.post, f"{url}/v2/models/tail/infer", data=body, headers=headers) for _ in range(4)
        ]
        with requests.Session() as session:
            answered = 0
            while not all(each.done() for each in asked):
                assert session.get(f"{url}/v2/health/live").status_code == 200
                answered += 1
        assert [each.result().status_code for each in asked] == [400] * 4
    assert answered > 10  # four bodies were unpacked and decoded meanwhile


def test_load_generators_find_a_configuration(own_server):
    import tritonclient.http as triton

    client = triton.InferenceServerClient(own_server.removeprefix("http://"))
    config = client.get_model_config("tail")
    assert config["max_batch_size"] == 4
    assert config["input"] == [{"name": "features", "data_type": "TYPE_FP32", "dims": [12, 8, 8]}]
    assert client.get_inference_statistics("tail")["model_stats"][0]["name"] == "tail"
    client.close()


def test_more_than_may_wait_are_told_to_come_back(bundle):
    big = np.random.default_rng(0).random((2048, 12, 8, 8), np.float32)
    options = ("--max-waiting", "1", "--max-batch", "4", "--threads", "1")
    with serving(bundle / "server0", *options) as (url, process), ThreadPoolExecutor(2) as pool:

        def ask(rows=2048, **parameters) -> tuple[int, str | None]:
            headers, chunks = oip.encode_request({"features": big[:rows]}, parameters=parameters)
            response = requests.post(f"{url}/v2/models/tail/infer", data=b"".join(chunks), headers=headers)
            return response.status_code, response.headers.get("Retry-After")

        assert ask() == (200, None)  # how long one takes is known from here on
        with at_work(process.pid, 0.2):
            runs = pool.submit(ask)
        waits = pool.submit(ask, timeout=700_000)
        one_waits = re.compile(r"^nv_inference_pending_request_count{[^}]*} 1.0$", re.MULTILINE)
        while not one_waits.search(requests.get(f"{url}/metrics").text):
            assert not runs.done()
        status, seconds = ask(rows=1)
        assert (status, int(seconds) >= 1) == (503, True)
        assert (runs.result()[0], waits.result()[0]) == (200, 504)


def _tensor(**changes) -> dict:
    return {"name": "features", "shape": [1, 12, 8, 8], "datatype": "FP32", "data": [0.0] * 768, **changes}


def _request(*tensors, **fields) -> bytes:
    return json.dumps({"inputs": list(tensors), **fields}).encode()


NAN = np.full((1, 12, 8, 8), np.nan, np.float32)
BINARY = {"name": "features", "shape": [1, 12, 8, 8], "datatype": "FP32"}
BAD = {
    "wrong name": (_request(_tensor(name="image")), {}, 400, "expected tensors ['features'], got ['image']"),
    "one more input": (_request(_tensor(), _tensor(name="x")), {}, 400, "expected tensors"),
    "wrong dtype": (_request(_tensor(datatype="FP64")), {}, 400, "expected dtype FP32, got FP64"),
    "wrong rank": (_request(_tensor(shape=[768])), {}, 400, "expected shape [-1, 12, 8, 8], got [768]"),
    "wrong size": (_request(_tensor(shape=[1, 12, 64, 1])), {}, 400, "got [1, 12, 64, 1]"),
    "empty batch": (_request(_tensor(shape=[0, 12, 8, 8], data=[])), {}, 400, "empty"),
    "unknown output": (_request(_tensor(), outputs=[{"name": "y"}]), {}, 400, "there are ['logits']"),
    "classes of an output": (
        _request(_tensor(), outputs=[{"name": "logits", "parameters": {"classification": 3}}]),
        {},
        400,
        "classification is not served here",
    ),
    "no output": (_request(_tensor(), outputs=[]), {}, 400, "outputs []"),
    "same output twice": (_request(_tensor(), outputs=[{"name": "logits"}] * 2), {}, 400, "once"),
    "a deadline after all time": (_request(_tensor(), parameters={"timeout": 10**400}), {}, 400, "a 64-bit integer"),
    "a deadline that is none": (_request(_tensor(), parameters={"timeout": "soon"}), {}, 400, "timeout is 'soon'"),
    "no JSON": (b"hello", {}, 400, "not an inference request"),
    "empty": (b"", {}, 400, "not an inference request"),
    "not UTF-8": (b"\xff\xfe", {}, 400, "not an inference request"),
    "header length": (b"{}", {"Inference-Header-Content-Length": "x"}, 400, "expected an integer"),
    "brotli": (b"\x1f\x8b", {"Content-Encoding": "br"}, 415, "'br' is not spoken"),
    "half a gzip": (gzip.compress(b"{}")[:-9], {"Content-Encoding": "gzip"}, 400, "not gzip: it has no end"),
    "two gzips": (gzip.compress(b"{}") * 2, {"Content-Encoding": "gzip"}, 400, "goes on behind its end"),
    "no gzip": (b"hello", {"Content-Encoding": "gzip"}, 400, "not gzip: Error -3"),
    "gzip for deflate": (gzip.compress(b"{}"), {"Content-Encoding": "deflate"}, 400, "not deflate"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_one_clear_line(server, case):
    body, headers, status, words = BAD[case]
    response = requests.post(f"{server}/v2/models/tail/infer", data=body, headers=headers)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_get_400(server, value):
    headers, chunks = oip.encode_request({"features": np.full((1, 12, 8, 8), value, np.float32)})
    response = requests.post(f"{server}/v2/models/tail/infer", data=b"".join(chunks), headers=headers)
    assert response.status_code == 400
    assert "not finite" in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/tail/infer/", 404),  # and no way to another address
        ("GET", "/v2/models/tail/versions/2", 404),
        ("POST", "/v2/models/tail/versions/x/infer", 404),
        ("GET", "/v2/models/tail/infer", 405),
        ("POST", "/v2/health/live", 405),
        ("DELETE", "/v2/models/tail", 405),
        ("GET", "/v2/models/%00%ff", 404),
        ("POST", "/v2/models/tail/infer%0A", 404),
        ("POST", "/v2/models/tail/versions/1/infer%0a", 404),
        ("GET", "/v2/models/tail/ready%0A", 404),
        ("GET", "/v2/health/live%0A", 404),
        ("GET", "/v2/models/" + "a" * 3000, 404),
    ],
)
def test_a_wrong_path_or_verb_is_an_error_of_the_protocols_shape(server, method, path, status):
    response = requests.request(method, server + path)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert len(response.text) < 400


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_may_be_compressed_both_ways(server, expected, algorithm):
    import tritonclient.http as triton

    rows = np.repeat(FEATURES, 64, 0)
    tensor = triton.InferInput("features", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    client = triton.InferenceServerClient(server.removeprefix("http://"))
    result = client.infer(
        "tail", [tensor], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    np.testing.assert_allclose(result.as_numpy("logits"), np.repeat(expected, 64, 0), atol=1e-5)
    client.close()


def test_a_short_answer_or_one_to_a_client_that_asks_for_none_is_sent_as_it_is(server):
    for rows, accepted, encoding in ((1, "gzip", None), (128, "identity", None), (128, "gzip;q=0, br", None),
                                     (128, "br, GZIP ; q=0.5", "gzip"), (128, "deflate", "deflate")):  # fmt: skip
        headers, chunks = oip.encode_request({"features": np.repeat(FEATURES[:1], rows, 0)})
        response = requests.post(
            f"{server}/v2/models/tail/infer", data=b"".join(chunks), headers={**headers, "Accept-Encoding": accepted}
        )
        assert response.status_code == 200
        assert response.headers.get("Content-Encoding") == encoding
        found = oip.decode_response(response.content, response.headers[oip.HEADER_LENGTH])
        assert found.outputs["logits"].shape == (rows, 10)


def test_what_unpacks_to_too_much_gets_413(bundle):
    with serving(bundle / "server0", "--max-body-mib", "1") as (url, _):
        bomb = gzip.compress(bytes(200 * 2**20))
        assert len(bomb) < 2**20
        response = requests.post(f"{url}/v2/models/tail/infer", data=bomb, headers={"Content-Encoding": "gzip"})
        assert response.status_code == 413


def test_too_long_a_body_gets_413_stated_or_not(bundle):
    with serving(bundle / "server0", "--max-body-mib", "1") as (url, _):
        infer = f"{url}/v2/models/tail/infer"
        body = bytes(2**20 + 1)
        assert requests.post(infer, data=body).status_code == 413
        chunked = requests.post(infer, data=iter([body[: 2**19]] * 3))
        assert chunked.status_code == 413
        assert "longer than 1048576" in chunked.json()["error"]
        assert requests.get(f"{url}/v2/health/live").status_code == 200


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda tensor: _request(tensor),
            st.fixed_dictionaries(
                {},
                optional={
                    "name": st.one_of(st.just("features"), st.text(max_size=4)),
                    "shape": st.lists(st.integers(-2, 2**33), max_size=5),
                    "datatype": st.sampled_from(["FP32", "FP16", "INT64", "BYTES", "", "fp32"]),
                    "data": st.lists(
                        st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=2)), max_size=9
                    ),
                    "parameters": st.dictionaries(st.just("binary_data_size"), st.integers(-1, 99)),
                },
            ),
        ),
    ),
    length=st.one_of(st.none(), st.integers(-1, 400)),
)
def test_no_body_brings_a_500(server, body, length):
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    response = requests.post(f"{server}/v2/models/tail/infer", data=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]


def test_a_body_cut_off_does_not_hurt_the_server(server):
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"POST /v2/models/tail/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    assert requests.get(f"{server}/v2/health/ready").status_code == 200


@pytest.mark.parametrize("path", ["index", "models/tail/load"])
def test_a_client_that_leaves_amid_what_it_asks_for_is_no_fault_of_the_servers(bundle, path):
    with serving(bundle / "server0") as (url, process):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(f"POST /v2/repository/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
            time.sleep(0.2)
        assert requests.get(f"{url}/v2/health/live").status_code == 200
        process.terminate()
        assert process.stderr.read() == ""


def test_many_clients_get_their_own_answers(server, expected):
    failures = []

    def ask(row: int) -> None:
        with Client(server) as client:
            for k in range(20):
                outputs, _ = client.infer("tail", {"features": FEATURES[row : row + 1]}, f"{row}-{k}")
                if not np.allclose(outputs["logits"], expected[row : row + 1], atol=1e-5):
                    failures.append(row)

    threads = [threading.Thread(target=ask, args=(i % 2,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_server(bundle, number):
    with serving(bundle / "server0") as (url, process):
        results = []
        big = np.random.default_rng(0).random((512, 12, 8, 8), np.float32)

        def ask() -> None:
            with Client(url, timeout_s=30, retries=0) as client:
                results.append(client.infer("tail", {"features": big})[0]["logits"].shape)

        with Client(url) as client:
            client.infer("tail", {"features": FEATURES})
        thread = threading.Thread(target=ask)
        with at_work(process.pid):
            thread.start()
        assert not results
        process.send_signal(number)
        thread.join()
        assert results == [(512, 10)]
        assert process.wait(20) == 0


def test_what_cannot_be_served_is_one_line(bundle, tmp_path, server):
    port = server.rpartition(":")[2]
    assert_one_line_error(edgesdk("serve", bundle / "edge", "--port", "0"), "folder of edge")
    assert_one_line_error(edgesdk("serve", tmp_path, "--port", "0"), "no manifest.json")
    assert_one_line_error(edgesdk("serve", bundle / "server0", "--port", port), "cannot listen", "in use")
    assert_one_line_error(
        edgesdk("serve", bundle / "server0", "--host", "198.51.100.1", "--port", "0", "--insecure"), "cannot listen"
    )


def test_it_listens_on_this_machine_alone_by_default(bundle):
    with serving(bundle / "server0") as (url, _):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    done = subprocess.run([*EDGESDK, "serve", "--help"], capture_output=True, text=True, check=True)
    assert "127.0.0.1" in done.stdout
