"""A server's folder as a model repository of Triton, which then serves the tail in place of ours.

The configuration is made as Triton's own protobuf message and written in its text form. Source: Triton's model
repository and model configuration documents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from edge_sdk.bundle import Part, PartyBundle, Precision, check_target
from edge_sdk.files import folder_aside
from edge_sdk.tensors import TensorSpec, batch_is_fixed

from .batcher import Batching

__all__ = ["TritonOptions", "model_config", "write_repository"]

Device = Literal["cpu", "gpu"]


class TritonOptions(NamedTuple):
    """How Triton runs the model.

    Attributes:
        device: that ONNX Runtime runs it on there.
        tensorrt: whether ONNX Runtime hands it to TensorRT, on a GPU.
        precision: of the ONNX file, of those that the bundle was exported in.
        batching: as for a server of ours; the queue's bound and longest wait are Triton's too.
    """

    device: Device = "cpu"
    tensorrt: bool = False
    precision: Precision = "fp32"
    batching: Batching = Batching()


def write_repository(bundle: PartyBundle, out: Path, options: TritonOptions) -> Path:
    """Write ``OUT/NAME/config.pbtxt`` and ``OUT/NAME/1/model.onnx``.

    Args:
        bundle: a server's folder.
        out: the repository, which must not exist, or be empty: one that holds another server's part would bring two
            shares together.
        options: how Triton runs the model.

    Returns:
        The model's folder.

    Raises:
        BundleError: ``out`` exists, or the bundle was not exported in this precision.
        OSError: it cannot be written.
    """
    check_target(out)
    part = bundle.manifest.parts[0]
    onnx = bundle.onnx(part, options.precision)
    config = model_config(bundle, part, options)
    with folder_aside(out) as folder:
        (folder / part.name / "1").mkdir(parents=True)
        (folder / part.name / "config.pbtxt").write_text(text_format.MessageToString(config))
        (folder / part.name / "1" / "model.onnx").write_bytes(onnx)
    return out / part.name


def model_config(bundle: PartyBundle, part: Part, options: TritonOptions) -> triton.ModelConfig:
    """The configuration of a part.

    A part whose batch size is fixed is configured with its whole shapes and without batching. Devices find bundle and
    party in the parameters: they send nothing to a server that does not name them.
    """
    fixed = batch_is_fixed((*part.inputs, *part.outputs))
    config = triton.ModelConfig(
        name=part.name,
        backend="onnxruntime",
        max_batch_size=0 if fixed else options.batching.max_batch,
        input=[triton.ModelInput(**_tensor(spec, fixed)) for spec in part.inputs],
        output=[triton.ModelOutput(**_tensor(spec, fixed)) for spec in part.outputs],
    )
    kind = triton.ModelInstanceGroup.KIND_GPU if options.device == "gpu" else triton.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(count=1, kind=kind)
    if not fixed:
        dynamic = config.dynamic_batching
        dynamic.max_queue_delay_microseconds = round(options.batching.window_s * 1e6)
        policy = dynamic.default_queue_policy
        policy.timeout_action = triton.ModelQueuePolicy.REJECT
        policy.allow_timeout_override = True  # the client's own timeout counts
        policy.max_queue_size = options.batching.max_waiting
        if options.batching.max_wait_s is not None:
            policy.default_timeout_microseconds = round(options.batching.max_wait_s * 1e6)
    if options.tensorrt:
        accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        accelerator.parameters["precision_mode"] = options.precision.upper()
    for name, value in bundle.manifest.identity.items():
        config.parameters[name].string_value = value
    return config


def _tensor(spec: TensorSpec, fixed: bool) -> dict[str, object]:
    shape = spec.shape if fixed else spec.shape[1:]
    return {"name": spec.name, "data_type": f"TYPE_{spec.dtype}", "dims": [size or 0 for size in shape]}
