"""LitServe, which speaks what it is told to: here the protocol's binary bodies, without their checks."""

import json
import os

import litserve
import numpy as np
import onnxruntime
from fastapi import Request, Response

NAME = os.environ["BENCH_NAME"]


class Tail(litserve.LitAPI):
    """One ONNX model."""

    def setup(self, device):
        """Open it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["BENCH_THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )

    async def decode_request(self, request: Request):
        """The one input."""
        body = await request.body()
        length = int(request.headers["inference-header-content-length"])
        given = json.loads(body[:length])["inputs"][0]
        return np.frombuffer(body, np.float32, offset=length).reshape(given["shape"])

    def batch(self, inputs):
        """Joined."""
        return np.concatenate(inputs)

    def predict(self, x):
        """Run."""
        return self.session.run(None, {self.session.get_inputs()[0].name: x})[0]

    def unbatch(self, output):
        """One row each."""
        return list(output)

    def encode_response(self, output):
        """Binary."""
        raw = np.ascontiguousarray(output).tobytes()
        tensor = {
            "name": self.session.get_outputs()[0].name,
            "datatype": "FP32",
            "shape": [1, output.shape[-1]],
            "parameters": {"binary_data_size": len(raw)},
        }
        head = json.dumps({"model_name": NAME, "outputs": [tensor]}).encode()
        return Response(head + raw, headers={"Inference-Header-Content-Length": str(len(head))})


if __name__ == "__main__":
    api = Tail(max_batch_size=int(os.environ["BENCH_BATCH"]), batch_timeout=0.0, api_path=f"/v2/models/{NAME}/infer")
    server = litserve.LitServer(api, accelerator="cpu", healthcheck_path=f"/v2/models/{NAME}/ready")
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="warning")
