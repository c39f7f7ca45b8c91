"""MLServer with a runtime of its own for ONNX Runtime; over HTTP it takes tensors as JSON alone.

By itself it runs each request alone, as it does unless told otherwise; ``on_mlserver_batched`` has it join them.
"""

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


async def serve(max_batch: int = 0, window_seconds: float = 0.0) -> None:
    """Serve; a batch waits as long for company, and 0 turns batching off."""
    port = int(os.environ["BENCH_PORT"])
    settings = Settings(
        host="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2, parallel_workers=0, debug=False
    )
    model = ModelSettings(
        name=os.environ["BENCH_NAME"],
        implementation=Tail,
        max_batch_size=max_batch,
        max_batch_time=window_seconds,
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(serve())
