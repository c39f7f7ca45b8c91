"""MLServer with a runtime of its own for ONNX Runtime; over HTTP it takes tensors as JSON alone."""

import asyncio
import os

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from session import open_session


class Tail(MLModel):
    """One ONNX model."""

    async def load(self) -> bool:
        """Open it."""
        self._session = open_session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run it."""
        feeds = {each.name: NumpyCodec.decode_input(each).astype(np.float32) for each in payload.inputs}
        names = [each.name for each in self._session.get_outputs()]
        found = self._session.run(names, feeds)
        outputs = [NumpyCodec.encode_output(name, array) for name, array in zip(names, found, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def main() -> None:
    """Serve."""
    port = int(os.environ["BENCH_PORT"])
    settings = Settings(
        host="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2, parallel_workers=0, debug=False
    )
    server = MLServer(settings)
    batch = int(os.environ["BENCH_BATCH"])
    model = ModelSettings(
        name=os.environ["BENCH_NAME"], implementation=Tail, max_batch_size=batch, max_batch_time=0.001
    )
    await server.start([model])


asyncio.run(main())
