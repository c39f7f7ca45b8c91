"""What load generators read first: Triton's ModelConfig of a model, as far as it has a meaning here."""

from __future__ import annotations

from typing import Any

from edge_sdk import oip

from .models import ONNX, Model

__all__ = ["configuration"]


def configuration(model: Model) -> dict[str, Any]:
    """The configuration as Triton's JSON has it."""
    batching = model.batching
    policy: dict[str, Any] = {"max_queue_size": batching.max_waiting}
    if batching.max_wait_s is not None:
        policy["default_timeout_microseconds"] = round(batching.max_wait_s * 1e6)
    return {
        "name": model.name,
        "platform": "onnxruntime_onnx" if model.platform == ONNX else model.platform,
        "backend": "onnxruntime" if model.platform == ONNX else "tensorrt",
        "max_batch_size": batching.max_batch,
        "input": [_tensor(each) for each in oip.tensor_metadata(model.inputs)],
        "output": [_tensor(each) for each in oip.tensor_metadata(model.outputs)],
        "dynamic_batching": {
            "max_queue_delay_microseconds": round(batching.window_s * 1e6),
            "default_queue_policy": policy,
        },
    }


def _tensor(tensor: dict[str, Any]) -> dict[str, Any]:
    """A tensor of a model's metadata as its configuration has it: without the batch axis."""
    return {"name": tensor["name"], "data_type": f"TYPE_{tensor['datatype']}", "dims": tensor["shape"][1:]}
