"""Ray Serve with its own batching; the protocol's binary bodies, without their checks."""

import json
import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import onnxruntime
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import Response

BENCH = {key: value for key, value in os.environ.items() if key.startswith("BENCH_")}


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=1024)
class Tail:
    """One ONNX model."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(BENCH["BENCH_THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(BENCH["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])

    @serve.batch(max_batch_size=int(BENCH["BENCH_BATCH"]), batch_wait_timeout_s=0)
    async def run(self, rows):
        """Joined."""
        return list(self.session.run(None, {self.session.get_inputs()[0].name: np.concatenate(rows)})[0])

    async def __call__(self, request: Request) -> Response:
        """Answer."""
        if request.url.path.endswith("/ready"):
            return Response()
        body = await request.body()
        length = int(request.headers["inference-header-content-length"])
        given = json.loads(body[:length])["inputs"][0]
        found = await self.run(np.frombuffer(body, np.float32, offset=length).reshape(given["shape"]))
        raw = found.tobytes()
        tensor = {
            "name": self.session.get_outputs()[0].name,
            "datatype": "FP32",
            "shape": [1, *found.shape],
            "parameters": {"binary_data_size": len(raw)},
        }
        head = json.dumps({"model_name": BENCH["BENCH_NAME"], "outputs": [tensor]}).encode()
        return Response(head + raw, headers={"Inference-Header-Content-Length": str(len(head))})


ray.init("local", include_dashboard=False, log_to_driver=False)
serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(BENCH["BENCH_PORT"])))
serve.run(Tail.bind(), route_prefix="/", blocking=True)
