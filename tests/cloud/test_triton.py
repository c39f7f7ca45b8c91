"""Model repositories: what stands in them, and that NVIDIA's real Triton serves them to our client.

The Triton that a package carries (nvidia-pytriton) has no ONNX Runtime of its own: there its Python backend runs it.
"""

import importlib.util
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests

from edge_sdk import EdgeRuntime
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.client import Client
from edge_sdk.errors import RemoteError

from ..conftest import assert_one_line_error, edgesdk_here, held_port, lacking, wait_until

if importlib.util.find_spec("tritonclient") is None:
    lacking("triton", "tritonclient: pip install 'edgesdk[deploy]'")
FEATURES = {"features": np.random.default_rng(1).random((2, 12, 8, 8), np.float32)}


def _read(model):
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.fixture
def repository(bundle, tmp_path):
    options = ("--max-batch", "16", "--max-waiting", "99", "--batch-window-ms", "0.5")
    done = edgesdk_here("triton", bundle / "server0", "--out", tmp_path / "repo", *options)
    assert done.returncode == 0, done.stderr
    return tmp_path / "repo"


def test_the_configuration_is_the_parts(bundle, repository):
    assert sorted(p.relative_to(repository) for p in repository.rglob("*") if p.is_file()) == [
        Path("tail/1/model.onnx"), Path("tail/config.pbtxt")
    ]  # fmt: skip
    assert (repository / "tail" / "1" / "model.onnx").read_bytes() == (bundle / "server0" / "tail.onnx").read_bytes()
    config = _read(repository / "tail")
    assert (config.name, config.backend, config.max_batch_size) == ("tail", "onnxruntime", 16)
    (tensor,) = config.input
    assert (tensor.name, tensor.data_type, list(tensor.dims)) == ("features", 11, [12, 8, 8])  # 11 is TYPE_FP32
    (tensor,) = config.output
    assert (tensor.name, list(tensor.dims)) == ("logits", [10])
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.allow_timeout_override) == (99, True)
    assert config.instance_group[0].kind == 2  # KIND_CPU
    assert config.parameters["edgesdk_party"].string_value == "server0"
    assert len(config.parameters["edgesdk_bundle_id"].string_value) == 64


def test_tensorrt_and_precision(bundle, tmp_path):
    options = ("--device", "gpu", "--tensorrt", "--precision", "fp16")
    assert edgesdk_here("triton", bundle / "server0", "--out", tmp_path / "r", *options).returncode == 0
    config = _read(tmp_path / "r" / "tail")
    assert config.instance_group[0].kind == 1  # KIND_GPU
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("tensorrt", {"precision_mode": "FP16"})
    content = (tmp_path / "r" / "tail" / "1" / "model.onnx").read_bytes()
    assert content == (bundle / "server0" / "tail.fp16.onnx").read_bytes()


def test_a_fixed_batch_is_told_as_a_whole_shape(make_checkpoint, tmp_path):
    from export.parity import parity_images
    from export.write_bundle import export_bundle

    export_bundle(make_checkpoint("none"), tmp_path / "b", images=parity_images(None, 32), batch="static")
    assert edgesdk_here("triton", tmp_path / "b" / "server0", "--out", tmp_path / "r").returncode == 0
    config = _read(tmp_path / "r" / "tail")
    assert config.max_batch_size == 0
    assert next(iter(config.input)).dims[0] == 1
    assert not config.HasField("dynamic_batching")


def test_what_cannot_be_written_is_one_line(bundle, repository, tmp_path):
    assert_one_line_error(edgesdk_here("triton", bundle / "server0", "--out", repository), "exists already")
    assert_one_line_error(edgesdk_here("triton", bundle / "edge", "--out", tmp_path / "n"), "folder of edge")
    assert edgesdk_here("triton", bundle / "server0", "--out", tmp_path / "n", "--tensorrt").returncode == 2
    assert not (tmp_path / "n").exists()


MODEL = """
from pathlib import Path
import numpy as np, onnxruntime
import triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, arguments):
        path = Path(arguments["model_repository"]) / arguments["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def execute(self, requests):
        answers = []
        for request in requests:
            names = [i.name for i in self.session.get_inputs()]
            # By DLPack: this Triton's own conversions were built for numpy 1, and lose the data of numpy 2's arrays.
            feeds = {name: np.from_dlpack(utils.get_input_tensor_by_name(request, name)) for name in names}
            found = zip([o.name for o in self.session.get_outputs()], self.session.run(None, feeds))
            tensors = [utils.Tensor.from_dlpack(name, np.array(array)) for name, array in found]
            answers.append(utils.InferenceResponse(tensors))
        return answers
"""


@contextmanager
def _triton(repository):
    """The real server over a repository: its address and log."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.submodule_search_locations is None:
        lacking("triton", "NVIDIA's Triton: pip install --no-deps nvidia-pytriton")
    home = Path(found.submodule_search_locations[0]) / "tritonserver"
    stub = home / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"
    backend = home / "backends" / "python" / "triton_python_backend_stub"
    if not backend.exists():
        backend.symlink_to(stub)
    for each in (home / "bin" / "tritonserver", stub):
        each.chmod(0o755)
    options = {
        "model-repository": repository,
        "backend-directory": home / "backends",
        "http-address": "127.0.0.1",
        "allow-grpc": "false",
        "allow-metrics": "false",
        "exit-on-error": "false",
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    libraries = [home.parent.parent / "nvidia_pytriton.libs", Path(sys.base_prefix) / "lib"]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        # Its Python has the packages of the first python3 that it finds, whatever other variables say.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    log = repository.parent / "triton.log"
    with held_port() as port, log.open("w") as file:
        command = [home / "bin" / "tritonserver", *given, f"--http-port={port}"]
        url = f"http://127.0.0.1:{port}"

        def lives():
            if process.poll() is not None:
                pytest.fail(log.read_text()[-3000:])
            try:
                return requests.get(f"{url}/v2/health/live", timeout=1).status_code == 200
            except requests.ConnectionError:
                return False

        with subprocess.Popen(command, stderr=file, stdout=file, env=environment) as process:
            try:
                wait_until(lives)
                yield url, log
            finally:
                process.terminate()


@pytest.fixture
def served(repository):
    """The repository behind a real Triton, whose Python backend runs ONNX Runtime."""
    config = repository / "tail" / "config.pbtxt"
    config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
    (repository / "tail" / "1" / "model.py").write_text(MODEL)
    with _triton(repository) as (url, log):
        try:
            wait_until(lambda: requests.get(f"{url}/v2/models/tail/ready").status_code == 200)
        except AssertionError:
            pytest.fail(log.read_text()[-3000:])
        yield url


@pytest.mark.slow
def test_a_real_triton_reads_the_configuration(repository):
    """All but the backend, which this Triton lacks."""
    with _triton(repository) as (url, log):
        wait_until(lambda: "unable to find backend" in log.read_text().lower())
        assert "tail" in log.read_text()
        assert "onnxruntime" in log.read_text()
        assert requests.get(f"{url}/v2/models/tail/ready").status_code != 200


@pytest.mark.slow
def test_our_device_asks_a_real_triton(bundle, served, image_folder):
    from edge_sdk.images import decode_image, fit_image

    with OnnxRuntimeBackend((bundle / "server0" / "tail.onnx").read_bytes()) as backend:
        expected = backend.run(FEATURES)["logits"]
    with Client(served) as client:
        outputs, timing = client.infer("tail", FEATURES, "r", {"edgesdk_bundle_id": "any"})
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    assert timing.queue_ms is None  # Triton does not say
    with EdgeRuntime(bundle / "edge", [served]) as runtime:
        image = fit_image(decode_image(next(filter(Path.is_file, image_folder.rglob("*")))), *runtime.image_size)[None]
        over_triton = runtime.predict(image)
        sent = runtime.encode(image)
    with OnnxRuntimeBackend((bundle / "server0" / "tail.onnx").read_bytes()) as backend:
        np.testing.assert_allclose(over_triton.logits, backend.run(sent)["logits"], atol=1e-5)


@pytest.mark.slow
def test_a_triton_with_another_export_gets_nothing(other_bundle, served):
    with EdgeRuntime(other_bundle / "edge", [served]) as runtime:
        height, width = runtime.image_size
        with pytest.raises(RemoteError, match="serves bundle"):
            runtime.predict(np.zeros((1, height, width, 3), np.uint8))
