"""NVIDIA's Triton, as nvidia-pytriton carries it: ONNX Runtime inside its Python backend, the only one in there."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import onnxruntime

MODEL = """
import numpy as np, onnxruntime, triton_python_backend_utils as utils
class TritonPythonModel:
    def initialize(self, arguments):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession("PATH", options, providers=["CPUExecutionProvider"])
    def execute(self, requests):
        rows = [np.from_dlpack(utils.get_input_tensor_by_name(r, "INPUT")) for r in requests]
        found = self.session.run(None, {"INPUT": np.concatenate(rows)})[0]
        answers, start = [], 0
        for row in rows:
            part = np.array(found[start : start + len(row)])
            start += len(row)
            answers.append(utils.InferenceResponse([utils.Tensor.from_dlpack("OUTPUT", part)]))
        return answers
"""
CONFIG = """
name: "NAME" backend: "python" max_batch_size: BATCH dynamic_batching {{}}
input {{ name: "INPUT" data_type: TYPE_FP32 dims: {inputs} }}
output {{ name: "OUTPUT" data_type: TYPE_FP32 dims: {outputs} }}
instance_group {{ count: 1 kind: KIND_CPU }}
"""


def main() -> None:
    """Write the repository, and become Triton."""
    bench = {key.removeprefix("BENCH_"): value for key, value in os.environ.items() if key.startswith("BENCH_")}
    session = onnxruntime.InferenceSession(bench["MODEL"], providers=["CPUExecutionProvider"])
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    words = {
        "NAME": bench["NAME"],
        "BATCH": bench["BATCH"],
        "THREADS": bench["THREADS"],
        "PATH": bench["MODEL"],
        "INPUT": given.name,
        "OUTPUT": answer.name,
    }
    repository = Path(bench["WORK"]) / "triton"
    folder = repository / bench["NAME"] / "1"
    folder.mkdir(parents=True, exist_ok=True)  # at each start of the benchmark's
    (folder / "model.py").write_text(_filled(MODEL, words))
    config = _filled(CONFIG, words).format(inputs=list(given.shape[1:]), outputs=list(answer.shape[1:]))
    (folder.parent / "config.pbtxt").write_text(config)

    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        sys.exit("needs nvidia-pytriton")
    home = Path(found.submodule_search_locations[0]) / "tritonserver"
    stub = f"{sys.version_info[0]}.{sys.version_info[1]}"
    binary = home / "backends" / "python" / "triton_python_backend_stub"
    if not binary.exists():
        shutil.copy(home / "python_backend_stubs" / stub / "triton_python_backend_stub", binary)
    for each in (home / "bin" / "tritonserver", binary):
        each.chmod(0o755)
    os.environ |= {
        "LD_LIBRARY_PATH": f"{home.parent.parent / 'nvidia_pytriton.libs'}:{Path(sys.base_prefix) / 'lib'}",
        # Its Python has the packages of the first python3 that it finds, whatever other variables say.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    options = {
        "model-repository": repository,
        "backend-directory": home / "backends",
        "http-address": "127.0.0.1",
        "http-port": bench["PORT"],
        "allow-grpc": "false",
        "allow-metrics": "true",
        "metrics-port": "0",
    }
    server = str(home / "bin" / "tritonserver")
    os.execv(server, [server, *(f"--{name}={value}" for name, value in options.items())])  # noqa: S606


def _filled(text: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        text = text.replace(name, value)
    return text


main()
