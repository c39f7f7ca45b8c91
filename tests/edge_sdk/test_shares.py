"""A bundle whose features go to four servers: real ones, and ones that answer what a broken server would."""

import json
import signal
import socket
import time
from contextlib import ExitStack, contextmanager

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge_sdk import EdgeRuntime, Execution, oip
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import EDGE, Part, open_party, write_bundle
from edge_sdk.collusion import ColocationWarning
from edge_sdk.errors import BundleError, CollusionError, ConfigError, RemoteError, RemoteTimeout
from edge_sdk.tensors import TensorSpec

from ..conftest import QuietHandler, answering_by, assert_one_line_error, edgesdk, meanwhile, serving, wait_until

pytestmark = pytest.mark.filterwarnings("ignore::edge_sdk.collusion.ColocationWarning")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def _run(path, feeds):
    with OnnxRuntimeBackend(path.read_bytes()) as backend:
        return backend.run(feeds)


def _expected(bundle, images, missing=()):
    sent = _run(bundle / "edge" / "encoder.onnx", {"image": images})
    answers, flags = {}, []
    for k in range(4):
        logits = _run(bundle / f"server{k}" / f"tail{k}.onnx", {f"share_{k}": sent[f"share_{k}"]})[f"logits_{k}"]
        answers[f"logits_{k}"] = logits * (k not in missing)
        flags.append(k not in missing)
    received = np.tile(np.float32(flags), (len(images), 1))
    return _run(bundle / "edge" / "fusion.onnx", {**answers, "received": received})["logits"]


@pytest.fixture(scope="module")
def servers(shares_bundle):
    with ExitStack() as stack:
        yield [stack.enter_context(serving(shares_bundle / f"server{k}"))[0] for k in range(4)]


@contextmanager
def impostor(bundle, k, answer, **claims):
    """A server that says it is ``server{k}``, and answers inference by ``answer(request body, handler)``.

    ``claims`` replace what it says of itself.
    """
    manifest = open_party(bundle / f"server{k}").manifest
    asked = []

    class Handler(QuietHandler):
        def do_GET(self):
            identity = {"edgesdk_bundle_id": manifest.bundle_id, "edgesdk_party": f"server{k}", **claims}
            self.answer(json.dumps({"name": f"tail{k}", "properties": identity}).encode())

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(body)
            answer(oip.decode_request(body, self.headers[oip.HEADER_LENGTH]), self)

    with answering_by(Handler) as url:
        yield url, asked


def _tensor(name, array):
    def answer(request, handler):
        headers, chunks = oip.encode_response("m", "1", {name: array}, request=request, parameters={})
        handler.answer(b"".join(chunks), headers.items())

    return answer


def test_the_fused_answer_is_that_of_the_graph(shares_bundle, servers):
    with EdgeRuntime(shares_bundle / "edge", servers) as runtime:
        prediction = runtime.predict(IMAGES)
    np.testing.assert_allclose(prediction.logits, _expected(shares_bundle, IMAGES), atol=1e-5)
    assert list(prediction.servers) == ["server0", "server1", "server2", "server3"]
    assert prediction.missing == {}
    assert prediction.timing.fuse_ms > 0
    assert all(timing.compute_ms > 0 for timing in prediction.servers.values())


def test_two_ports_of_this_machine_are_warned_of(shares_bundle, servers):
    with EdgeRuntime(shares_bundle / "edge", servers) as runtime, pytest.warns(ColocationWarning, match="this machine"):
        runtime.predict(IMAGES)


def test_one_server_for_two_shares_is_refused_before_anything_is_sent(shares_bundle):
    with impostor(shares_bundle, 0, lambda *_: None) as (url, asked):
        port = url.rpartition(":")[2]
        urls = [url, f"http://localhost:{port}", "http://127.0.0.1:1", "http://127.0.0.1:2"]
        for on_missing in ("fail", "degrade"):
            refused = pytest.raises(CollusionError, match="one server")
            with EdgeRuntime(shares_bundle / "edge", urls, on_missing=on_missing) as runtime, refused:
                runtime.predict(IMAGES)
    assert asked == []


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [0, 1, 3, 2]])
def test_a_server_gets_no_share_but_its_own(shares_bundle, servers, order):
    refused = pytest.raises(RemoteError, match=r"2 of 4 servers failed: .*no model 'tail\d' here")
    with EdgeRuntime(shares_bundle / "edge", [servers[k] for k in order]) as runtime, refused:
        runtime.predict(IMAGES)


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"edgesdk_party": "server2"}, "is server2 of this bundle; server1 is needed there"),
        ({"edgesdk_party": None}, "is None of this bundle; server1 is needed there"),
        ({"edgesdk_bundle_id": "ab" * 32}, "serves bundle abababababab"),
    ],
)
def test_a_server_that_says_it_is_another_gets_nothing(shares_bundle, servers, claims, words):
    with impostor(shares_bundle, 1, lambda *_: None, **claims) as (url, asked):
        urls = [servers[0], url, *servers[2:]]
        refused = pytest.raises(RemoteError, match=words)
        with EdgeRuntime(shares_bundle / "edge", urls) as runtime, refused:
            runtime.predict(IMAGES)
        with EdgeRuntime(shares_bundle / "edge", urls, on_missing="degrade") as runtime:
            assert list(runtime.predict(IMAGES).missing) == ["server1"]
    assert asked == []


def test_a_name_that_comes_to_mean_another_parts_server_is_not_connected_to(shares_bundle, servers, monkeypatch):
    """Between the check of all addresses and the connection; nothing is degraded by it."""
    ports = [int(url.rpartition(":")[2]) for url in servers]
    real, asked = socket.getaddrinfo, []

    def look_up(host, port, *arguments, **options):
        asked.append(host)
        if host != "moving.test":
            return real(host, port, *arguments, **options)
        address = ("198.51.100.1", port) if asked.count(host) == 1 else ("127.0.0.1", ports[0])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    urls = [servers[0], f"http://moving.test:{ports[1]}", *servers[2:]]
    refused = pytest.raises(CollusionError, match=r"moving\.test.* are one server")
    with EdgeRuntime(shares_bundle / "edge", urls, on_missing="degrade") as runtime, refused:
        runtime.predict(IMAGES)


def test_answers_that_fuse_to_no_number_are_an_error(shares_bundle, tmp_path):
    edge = open_party(shares_bundle / "edge")
    fusion = onnx.load_from_string(edge.files["fusion.onnx"])
    for weights in fusion.graph.initializer:
        value = numpy_helper.to_array(weights)
        if value.dtype == np.float32:
            weights.CopyFrom(numpy_helper.from_array(value * 8, weights.name))
    files = {name: data for name, data in edge.files.items() if name.endswith(".onnx")}
    files["fusion.onnx"] = fusion.SerializeToString()
    write_bundle(tmp_path / "b", {EDGE: edge.manifest}, {EDGE: files})
    largest = np.full((3, 10), 3e38, np.float32)
    largest[:, 1::2] *= -1
    with ExitStack() as stack:
        urls = [stack.enter_context(impostor(shares_bundle, k, _tensor(f"logits_{k}", largest)))[0] for k in range(4)]
        with EdgeRuntime(shares_bundle / "edge", urls) as runtime:
            np.testing.assert_allclose(runtime.predict(IMAGES).probabilities[0], [0.2, 0] * 5)
        with (
            EdgeRuntime(tmp_path / "b" / "edge", urls, on_missing="degrade") as runtime,
            pytest.raises(RemoteError, match="give no number"),
        ):
            runtime.predict(IMAGES)


def test_the_default_names_the_server_that_is_down(shares_bundle, servers):
    urls = [*servers[:2], "http://127.0.0.1:9", servers[3]]
    named = pytest.raises(RemoteError, match=r"127\.0\.0\.1:9: no connection")
    with EdgeRuntime(shares_bundle / "edge", urls, timeout_s=2) as runtime, named:
        runtime.predict(IMAGES)


@pytest.mark.parametrize("missing", [[2], [0, 3]])
def test_degrade_fuses_the_answers_that_came(shares_bundle, servers, missing):
    urls = [f"http://127.0.0.1:{9 + k}" if k in missing else url for k, url in enumerate(servers)]
    with EdgeRuntime(shares_bundle / "edge", urls, timeout_s=2, on_missing="degrade") as runtime:
        prediction = runtime.predict(IMAGES)
    np.testing.assert_allclose(prediction.logits, _expected(shares_bundle, IMAGES, missing), atol=1e-5)
    assert list(prediction.missing) == [f"server{k}" for k in missing]
    assert all("no connection" in str(error) for error in prediction.missing.values())


def test_a_server_that_failed_is_not_waited_for_again_at_once(shares_bundle, servers):
    with (
        impostor(shares_bundle, 3, lambda *_: time.sleep(3)) as (url, asked),
        EdgeRuntime(
            shares_bundle / "edge",
            [*servers[:3], url],
            timeout_s=1.5,
            on_missing="degrade",
            execution=Execution(num_threads=1),
        ) as runtime,
    ):
        first = runtime.predict(IMAGES)
        began = time.perf_counter()
        second = runtime.predict(IMAGES)
        took = time.perf_counter() - began
        assert second.missing["server3"] is first.missing["server3"]
        assert took < 1.2
        time.sleep(1)
        runtime.predict(IMAGES)
        assert len(asked) == 2


def test_without_any_server_there_is_no_answer(shares_bundle):
    urls = [f"http://127.0.0.1:{k}" for k in range(9, 13)]
    named = pytest.raises(RemoteError, match="4 of 4 servers failed")
    with EdgeRuntime(shares_bundle / "edge", urls, timeout_s=1, on_missing="degrade") as runtime, named:
        runtime.predict(IMAGES)


GARBAGE = {
    "wrong shape": (_tensor("logits_1", np.zeros((3, 7), np.float32)), "expected shape"),
    "wrong batch": (_tensor("logits_1", np.zeros((1, 10), np.float32)), "batch of 1 answered"),
    "wrong dtype": (_tensor("logits_1", np.zeros((3, 10), np.int32)), "expected dtype FP32"),
    "not finite": (_tensor("logits_1", np.full((3, 10), np.nan, np.float32)), "not finite"),
    "another tensor": (_tensor("logits_0", np.zeros((3, 10), np.float32)), "expected tensors"),
    "no answer of the protocol": (lambda request, handler: handler.answer(b"hello"), "not an inference response"),
    "silence": (lambda request, handler: time.sleep(1.5), "no whole answer"),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_counts_as_no_answer(shares_bundle, servers, case):
    answer, words = GARBAGE[case]
    with impostor(shares_bundle, 1, answer) as (url, _):
        urls = [servers[0], url, *servers[2:]]
        with EdgeRuntime(shares_bundle / "edge", urls, timeout_s=1) as runtime, pytest.raises(RemoteError, match=words):
            runtime.predict(IMAGES)
        with EdgeRuntime(shares_bundle / "edge", urls, timeout_s=1, on_missing="degrade") as runtime:
            prediction = runtime.predict(IMAGES)
    assert list(prediction.missing) == ["server1"]
    np.testing.assert_allclose(prediction.logits, _expected(shares_bundle, IMAGES, [1]), atol=1e-5)


def test_all_servers_are_asked_at_once(shares_bundle):
    def slow(k):
        def answer(request, handler):
            time.sleep(1)
            _tensor(f"logits_{k}", np.zeros((3, 10), np.float32))(request, handler)

        return answer

    with ExitStack() as stack:
        urls = [stack.enter_context(impostor(shares_bundle, k, slow(k)))[0] for k in range(4)]
        runtime = stack.enter_context(EdgeRuntime(shares_bundle / "edge", urls))
        runtime.predict(IMAGES)
        began = time.perf_counter()
        timing = runtime.predict(IMAGES).timing
        took = time.perf_counter() - began
    assert 1 < took < 2
    asked = took * 1e3 - timing.encode_ms - timing.fuse_ms
    assert timing.network_ms + timing.serialize_ms == pytest.approx(asked, rel=0.2)


def test_each_server_gets_its_share_and_no_more(shares_bundle):
    with ExitStack() as stack:
        seen = {}
        urls = []
        for k in range(4):
            answer = _tensor(f"logits_{k}", np.zeros((3, 10), np.float32))
            url, seen[k] = stack.enter_context(impostor(shares_bundle, k, answer))
            urls.append(url)
        runtime = stack.enter_context(EdgeRuntime(shares_bundle / "edge", urls))
        runtime.predict(IMAGES)
        sent = runtime.encode(IMAGES)
    for k, bodies in seen.items():
        (body,) = bodies
        share = sent[f"share_{k}"].tobytes()
        assert share in body
        assert len(body) < len(share) + 500
        assert not any(sent[f"share_{other}"].tobytes() in body for other in range(4) if other != k)


def test_a_bundle_that_needs_every_server_cannot_degrade(bundle):
    with pytest.raises(ConfigError, match="cannot degrade"):
        EdgeRuntime(bundle / "edge", on_missing="degrade")
    with pytest.raises(ConfigError, match="fail or degrade, got 'maybe'"):
        EdgeRuntime(bundle / "edge", on_missing="maybe")


def test_a_graph_that_asks_for_more_flags_than_servers_is_refused(shares_bundle, tmp_path):
    edge = open_party(shares_bundle / "edge")
    *parts, fusion = edge.manifest.parts
    flags = TensorSpec("received", "FP32", (None, 3), "received")
    wrong: Part = msgspec.structs.replace(fusion, inputs=(*fusion.inputs[:-1], flags))
    manifest = msgspec.structs.replace(edge.manifest, parts=(*parts, wrong))
    files = {name: data for name, data in edge.files.items() if name.endswith(".onnx")}
    with pytest.raises(BundleError, match=r"'received' must be \(N, 4\)"):
        write_bundle(tmp_path / "b", {EDGE: manifest}, {EDGE: files})


def test_a_killed_server_is_survived_and_comes_back(shares_bundle):
    """Under load: every request ends within its deadline as ok, degraded or a named error; no ok answer is wrong."""
    expected = [_expected(shares_bundle, IMAGES[i : i + 1])[0] for i in range(3)]
    outcomes, slowest = [], 0.0
    with ExitStack() as stack:
        started = [stack.enter_context(serving(shares_bundle / f"server{k}")) for k in range(4)]
        urls = [url for url, _ in started]
        runtime = stack.enter_context(
            EdgeRuntime(
                shares_bundle / "edge", urls, timeout_s=2.0, on_missing="degrade", execution=Execution(num_threads=1)
            )
        )

        def load():
            nonlocal slowest
            i = len(outcomes) % 3
            began = time.perf_counter()
            try:
                prediction = runtime.predict(IMAGES[i : i + 1])
                right = np.allclose(prediction.logits[0], expected[i], atol=1e-4)
                outcomes.append("degraded" if prediction.missing else "ok" if right else "WRONG")
            except RemoteError:
                outcomes.append("error")
            slowest = max(slowest, time.perf_counter() - began)

        with meanwhile(load):
            wait_until(lambda: outcomes.count("ok") >= 20)
            url, process = started[2]
            process.send_signal(signal.SIGKILL)
            process.wait()
            wait_until(lambda: "degraded" in outcomes)
            stack.enter_context(serving(shares_bundle / "server2", "--port", url.rpartition(":")[2]))
            before = len(outcomes)
            wait_until(lambda: outcomes[before:].count("ok") >= 20)
    assert "WRONG" not in outcomes
    assert slowest < 3


def test_the_command_line_takes_servers_from_a_file_and_says_what_is_missing(
    shares_bundle, servers, image_folder, tmp_path
):
    listed = tmp_path / "servers.txt"
    listed.write_text("# the four of them\n" + "\n".join([*servers[:3], "http://127.0.0.1:9  # down"]) + "\n\n")
    image = next(image_folder.glob("test/*/*"))
    done = edgesdk(
        "run", shares_bundle / "edge", image, "--servers-file", listed, "--on-missing", "degrade", "--timeout", "2"
    )
    assert done.returncode == 0, done.stderr
    assert "(degraded: 3 of 4 servers)" in done.stdout
    assert "edgesdk: warning: server0" in done.stderr
    failed = edgesdk("run", shares_bundle / "edge", image, "--servers-file", listed, "--timeout", "2")
    assert failed.returncode == 1
    assert "127.0.0.1:9: no connection" in failed.stderr.splitlines()[-1]
    measured = edgesdk(
        "measure", shares_bundle / "edge", "--servers-file", listed, "--data", image_folder / "test", "--n", "5",
        "--on-missing", "degrade", "--timeout", "2", "--json",
    )  # fmt: skip
    report = json.loads(measured.stdout)
    assert report["num_degraded"] == 5
    assert report["servers"]["server3"]["num_missing"] == 5
    assert report["servers"]["server0"]["num_answers"] == 5
    assert report["servers"]["server0"]["round_trip"]["p50_ms"] > 0
    sizes = [server["feature_bytes_per_image"] for server in report["servers"].values()]
    assert sum(sizes) == report["feature_bytes_per_image"] == 4 * 204 * 4


@pytest.mark.parametrize("content", [b"", b"# none\n\n", b"\xff\xfe"])
def test_a_servers_file_without_addresses_is_one_line(shares_bundle, tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    done = edgesdk("run", shares_bundle / "edge", "x.png", "--servers-file", tmp_path / "s")
    assert_one_line_error(done, str(tmp_path / "s"))


def test_addresses_come_from_one_place(shares_bundle, tmp_path):
    for options in ([], ["--server", "http://127.0.0.1:9", "--servers-file", tmp_path / "s"]):
        done = edgesdk("run", shares_bundle / "edge", "x.png", *options)
        assert done.returncode == 2
        assert "or by --servers-file" in done.stderr


def test_deadlines_hold_for_a_server_that_is_slow(shares_bundle, servers):
    with (
        impostor(shares_bundle, 3, lambda *_: time.sleep(2)) as (url, _),
        EdgeRuntime(shares_bundle / "edge", [*servers[:3], url], timeout_s=0.5) as runtime,
    ):
        began = time.perf_counter()
        with pytest.raises(RemoteTimeout):
            runtime.predict(IMAGES)
        assert time.perf_counter() - began < 1.5
