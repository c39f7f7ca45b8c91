"""LitServe, which speaks what it is told to: here the protocol's binary bodies, without their checks."""

import json
import os
from math import prod
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response
from session import open_session

Binary = Annotated[bytes, Body(media_type="application/octet-stream")]  # else it decodes JSON
NAME = os.environ["BENCH_NAME"]


class Tail(litserve.LitAPI):
    """One ONNX model."""

    def setup(self, device):
        """Open it."""
        self.session = open_session()

    def decode_request(self, request: Binary):
        """The one input, one row; LitServe shows no headers, so where the tensor begins is told by its size."""
        shape = [1, *self.session.get_inputs()[0].shape[1:]]
        return np.frombuffer(request, np.float32, offset=len(request) - 4 * prod(shape)).reshape(shape)

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
