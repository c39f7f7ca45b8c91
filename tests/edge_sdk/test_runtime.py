import json
import shutil

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from scipy import stats

from edge_sdk import EdgeRuntime, oip
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import EDGE, Cost, Manifest, Part, open_party, write_bundle
from edge_sdk.errors import BackendError, BundleError, DeviceError, RemoteError, TensorError
from edge_sdk.noise import draw_noise
from edge_sdk.tensors import TensorSpec

from ..conftest import QuietHandler, answering_by, serving

FREE = Cost(0, 0, 0, 0, ())
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def _run(path, feeds):
    with OnnxRuntimeBackend(path.read_bytes()) as backend:
        return backend.run(feeds)


def test_a_prediction_is_encoder_then_tail(bundle, server):
    features = _run(bundle / "edge" / "encoder.onnx", {"image": IMAGES})["features"]
    logits = _run(bundle / "server0" / "tail.onnx", {"features": features})["logits"]
    with EdgeRuntime(bundle / "edge", [server]) as runtime:
        np.testing.assert_array_equal(runtime.encode(IMAGES)["features"], features)
        prediction = runtime.predict(IMAGES)
    np.testing.assert_allclose(prediction.logits, logits, atol=1e-6)
    np.testing.assert_allclose(prediction.probabilities.sum(1), 1, rtol=1e-6)
    assert (prediction.probabilities.argmax(1) == logits.argmax(1)).all()
    timing = prediction.timing
    assert timing.encode_ms > 0
    assert timing.network_ms > 0
    assert timing.tail_ms is not None
    assert timing.tail_ms > 0
    assert timing.fuse_ms == 0


def test_nothing_is_sent_to_a_server_of_another_bundle(bundle, other_bundle):
    with (
        serving(other_bundle / "server0") as (url, _),
        EdgeRuntime(bundle / "edge", [url]) as runtime,
        pytest.raises(RemoteError, match="deploy both from one export"),
    ):
        runtime.predict(IMAGES)


def test_a_bundle_deployed_anew_at_the_same_address_is_noticed(bundle, tmp_path):
    """The server is replaced by one of another export with the same shapes, after the client has connected.

    What it is sent is in test_remote.py.
    """
    server = open_party(bundle / "server0")
    fresh = msgspec.structs.replace(server.manifest, bundle_id="ab" * 32)
    files = {file: server.files[file] for file in server.manifest.parts[0].files}
    write_bundle(tmp_path / "fresh", {"server0": fresh}, {"server0": files})
    with serving(bundle / "server0") as (url, first), EdgeRuntime(bundle / "edge", [url]) as runtime:
        runtime.predict(IMAGES)
        first.kill()
        first.wait()
        again = serving(tmp_path / "fresh" / "server0", "--port", url.rpartition(":")[2])
        with again, pytest.raises(RemoteError, match=r"serves bundle abababababab, .*; deploy both"):
            runtime.predict(IMAGES)


def test_a_server_of_another_protocol_is_refused(bundle):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    methods = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            methods.append(self.command)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"name": "tail"}')

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        with (
            EdgeRuntime(bundle / "edge", [f"http://127.0.0.1:{other.server_port}"]) as runtime,
            pytest.raises(RemoteError, match="serves bundle None"),
        ):
            runtime.predict(IMAGES)
        other.shutdown()
    assert methods == ["GET", "GET"]  # metadata and configuration; features were never posted


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (IMAGES.astype(np.float32), "expected dtype UINT8, got FP32"),
        (IMAGES[0], "expected shape"),
        (IMAGES[:, :16], "expected shape"),
        (IMAGES.transpose(0, 3, 1, 2), "expected shape"),
        (IMAGES[:0], "empty"),
    ],
)
def test_images_that_do_not_fit_are_refused(bundle, images, words):
    with EdgeRuntime(bundle / "edge") as runtime, pytest.raises(TensorError, match=words):
        runtime.encode(images)


def test_the_number_of_servers_must_fit(bundle):
    with pytest.raises(RemoteError, match=r"1 server\(s\), got 2"):
        EdgeRuntime(bundle / "edge", ["http://a:1", "http://b:1"])
    with EdgeRuntime(bundle / "edge") as runtime, pytest.raises(RemoteError, match="no server address"):
        runtime.predict(IMAGES)


def test_one_address_needs_no_list(bundle, shares_bundle, server):
    with EdgeRuntime(bundle / "edge", server) as runtime:
        assert runtime.predict(IMAGES).logits.shape == (3, 10)
    with pytest.raises(RemoteError, match=r"has 4 server\(s\), got 1 address"):
        EdgeRuntime(shares_bundle / "edge", server)
    with pytest.raises(RemoteError, match="'' is not a server address"):
        EdgeRuntime(bundle / "edge", "")


def test_a_closed_runtime_says_so(bundle, server):
    runtime = EdgeRuntime(bundle / "edge", [server])
    for _ in range(2):
        runtime.close()
    for use in (runtime.encode, runtime.predict):
        with pytest.raises(BackendError, match="was closed; open another"):
            use(IMAGES)


def test_a_server_folder_is_no_edge(bundle):
    with pytest.raises(BundleError, match="folder of server0"):
        EdgeRuntime(bundle / "server0")


@pytest.fixture
def write_noisy(tmp_path):
    """Writes a bundle whose encoder returns its noise times 0.5: what a noise defense exports, at its smallest."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])
    noise = helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["batch", 1000])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 1000])
    half = helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])
    graph = helper.make_graph([helper.make_node("Mul", ["noise", "half"], ["z"])], "g", [image, noise], [z], [half])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    onnx.checker.check_model(content)
    specs = (TensorSpec("image", "UINT8", (None, 4, 4, 3)), TensorSpec("noise", "FP32", (None, 1000), "normal"))
    part = Part("encoder", EDGE, specs, (TensorSpec("z", "FP32", (None, 1000)),), "encoder.onnx", FREE)

    def write(*more):
        parts = (part, *more)
        manifest = Manifest(format_version=1, bundle_id="0" * 64, party=EDGE, parts=parts, defense="any")
        path = tmp_path / f"b{len(parts)}"
        write_bundle(path, {EDGE: manifest}, {EDGE: {"encoder.onnx": content}})
        return path

    return write


@pytest.fixture
def noisy(write_noisy):
    return write_noisy()


@pytest.fixture
def noisy_pair(write_noisy):
    """The same with a tail on a server."""
    z, logits = TensorSpec("z", "FP32", (None, 1000)), TensorSpec("logits", "FP32", (None, 2))
    return write_noisy(Part("tail", "server0", (z,), (logits,)))


def test_noise_is_standard_normal_and_new_for_every_request(noisy):
    images = np.zeros((4, 4, 4, 3), np.uint8)
    with EdgeRuntime(noisy / "edge") as runtime:
        first, second = (runtime.encode(images)["z"] for _ in range(2))
    with EdgeRuntime(noisy / "edge") as runtime:
        third = runtime.encode(images)["z"]
    for a, b in ((first, second), (first, third), (first[:1], first[1:2])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.2
    draws = np.concatenate([first, second, third]) / 0.5  # 12,000 draws
    assert abs(draws.mean()) < 0.05
    assert abs(draws.std() - 1) < 0.05


def test_without_the_systems_entropy_nothing_is_encoded(noisy, monkeypatch):
    """Of every request anew: a generator that was seeded before could go on without."""
    images = np.zeros((1, 4, 4, 3), np.uint8)

    def fails(count):
        raise NotImplementedError("no entropy")

    with EdgeRuntime(noisy / "edge") as runtime:
        runtime.encode(images)
        monkeypatch.setattr("os.urandom", fails)
        with pytest.raises(DeviceError, match="without noise nothing is sent: no entropy"):
            runtime.encode(images)


@pytest.mark.parametrize("count", [1, 7, 200_000])
def test_noise_is_as_a_normal_distribution_is_all_over(count):
    (drawn,) = draw_noise([TensorSpec("noise", "FP32", (None, count), "normal")], 1).values()
    assert (drawn.dtype, drawn.shape) == (np.float32, (1, count))
    assert np.isfinite(drawn).all()
    if count > 1000:
        assert stats.kstest(drawn[0], "norm").pvalue > 1e-9
        assert abs(np.corrcoef(drawn[0, : count // 2], drawn[0, count // 2 :])[0, 1]) < 0.02  # of one pair each


@pytest.mark.parametrize("first", ["503", "hang up"])
def test_what_is_sent_again_has_the_noise_that_it_had(noisy_pair, first):
    """Drawn anew for each try, it would be averaged away by a server that refuses."""
    bodies = []

    class Refuses(QuietHandler):
        def do_GET(self):
            identity = {"edgesdk_bundle_id": "0" * 64, "edgesdk_party": "server0"}
            self.answer(json.dumps({"name": "tail", "properties": identity}).encode())

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = oip.decode_request(body, self.headers[oip.HEADER_LENGTH])
            bodies.append(asked.inputs["z"].copy())
            if len(bodies) == 1 and first == "503":
                self.answer(b"{}", status=503)
            elif len(bodies) == 1:
                self.close_connection = True
            else:
                logits = {"logits": np.zeros((1, 2), np.float32)}
                headers, chunks = oip.encode_response("tail", "1", logits, request=asked, parameters={})
                self.answer(b"".join(chunks), headers.items())

    with answering_by(Refuses) as url, EdgeRuntime(noisy_pair / "edge", url) as runtime:
        runtime.predict(np.zeros((1, 4, 4, 3), np.uint8))
    assert len(bodies) == 2
    assert bodies[0].tobytes() == bodies[1].tobytes()
    assert bodies[0].std() > 0.4


def test_a_wrong_address_is_told_before_anything_is_loaded(bundle, monkeypatch):
    monkeypatch.setattr("edge_sdk.runtime.open_backend", None)
    with pytest.raises(RemoteError, match="is not a server address"):
        EdgeRuntime(bundle / "edge", "ftp://x")


@pytest.mark.filterwarnings("ignore::edge_sdk.collusion.ColocationWarning")
def test_fusion_runs_on_the_device(bundle, tmp_path):
    """Two servers and a fusion: the graph decides, the runtime knows no defense."""
    edge, server = open_party(bundle / "edge"), open_party(bundle / "server0")
    tail = edge.manifest.part("tail")
    model = onnx.load_from_string(server.onnx(server.manifest.parts[0]))
    renamed = {}
    for name in ("a", "b"):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.output[0].name = f"logits_{name}"
        for node in copy.graph.node:
            node.output[:] = [f"logits_{name}" if o == "logits" else o for o in node.output]
        renamed[name] = copy.SerializeToString()
    shape = ["batch", 10]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("logits_a", "logits_b", "fused")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["logits_a", "logits_b"], ["fused"])], "f", values[:2], values[2:]
    )
    fusion = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    logits = {n: (TensorSpec(f"logits_{n}", "FP32", (None, 10)),) for n in ("a", "b")}
    remote = {n: Part(f"tail_{n}", f"server{i}", tail.inputs, logits[n]) for i, n in enumerate("ab")}
    fuse = Part(
        "fusion", EDGE, (*logits["a"], *logits["b"]), (TensorSpec("fused", "FP32", (None, 10)),), "fusion.onnx", FREE
    )
    encoder = msgspec.structs.replace(edge.manifest.parts[0], variants={})
    parts = (encoder, *remote.values(), fuse)
    manifests = {EDGE: msgspec.structs.replace(edge.manifest, parts=parts, reference=None)}
    files = {EDGE: {"encoder.onnx": edge.files["encoder.onnx"], "fusion.onnx": fusion}}
    for i, n in enumerate("ab"):
        local = msgspec.structs.replace(remote[n], file="tail.onnx", cost=FREE)
        manifests[f"server{i}"] = msgspec.structs.replace(server.manifest, party=f"server{i}", parts=(local,))
        files[f"server{i}"] = {"tail.onnx": renamed[n]}
    write_bundle(tmp_path / "two", manifests, files)
    expected = _run(bundle / "server0" / "tail.onnx", _run(bundle / "edge" / "encoder.onnx", {"image": IMAGES}))[
        "logits"
    ]
    with (
        serving(tmp_path / "two" / "server0") as (a, _),
        serving(tmp_path / "two" / "server1") as (b, _),
        EdgeRuntime(tmp_path / "two" / "edge", [a, b]) as runtime,
    ):
        prediction = runtime.predict(IMAGES)
        np.testing.assert_allclose(prediction.logits, 2 * expected, atol=1e-5)
        assert prediction.timing.fuse_ms > 0
    with EdgeRuntime(tmp_path / "two" / "edge", [b, a]) as swapped, pytest.raises(RemoteError):
        swapped.predict(IMAGES)


def test_a_copied_bundle_still_opens(bundle, tmp_path):
    shutil.copytree(bundle / "edge", tmp_path / "elsewhere")
    with EdgeRuntime(tmp_path / "elsewhere") as runtime:
        assert runtime.image_spec.shape == (None, 32, 32, 3)
