"""KServe's Python server with a model of its own for ONNX Runtime; it joins no requests."""

import os

from kserve import InferOutput, InferResponse, Model, ModelServer
from session import open_session


class Tail(Model):
    """One ONNX model."""

    def load(self) -> bool:
        """Open it."""
        self.session = open_session()
        self.ready = True
        return True

    async def predict(self, payload, headers=None, response_headers=None):
        """Run it."""
        found = self.session.run(None, {each.name: each.as_numpy() for each in payload.inputs})
        outputs = []
        for given, array in zip(self.session.get_outputs(), found, strict=True):
            output = InferOutput(given.name, list(array.shape), "FP32")
            output.set_data_from_numpy(array, binary_data=True)
            outputs.append(output)
        return InferResponse(payload.id, self.name, outputs)


model = Tail(os.environ["BENCH_NAME"])
model.load()
ModelServer(http_port=int(os.environ["BENCH_PORT"]), enable_grpc=False, workers=1).start([model])
