"""ONNX to a TensorRT engine, in this process.

The precision is in the ONNX file: strongly typed networks (TensorRT 10 on) keep its types. Source: TensorRT developer
guide, sections on strong typing and dynamic shapes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..bundle import Precision
from ..errors import BackendError, ConfigError, DeviceError
from .library import TensorRT

__all__ = ["OUT_OF_MEMORY", "EngineLayer", "EngineOptions", "build_engine"]

OUT_OF_MEMORY = (
    "close the desktop (it takes some 800 MB), add a swap file, lower --max-batch, change --workspace, or choose fp16"
)


class EngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an engine is built for.

    Attributes:
        precision: of the ONNX that it is built from.
        max_batch: largest batch, which the engine is tuned for; it takes every smaller one too.
        workspace_bytes: of GPU memory that TensorRT may try layers with; None leaves it to TensorRT.
        targets: GPUs to build for, ``sm_89``, without one at hand; TensorRT for RTX alone. Empty: the GPU here.

    Raises:
        ConfigError: a count that is not positive.
    """

    precision: Precision = "fp32"
    max_batch: int = 1
    workspace_bytes: int | None = None
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_batch", "workspace_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be positive, got {value}")


class EngineLayer(msgspec.Struct, frozen=True):
    """A layer of the network as TensorRT read it, before it fuses layers.

    Attributes:
        name: TensorRT's.
        kind: such as CONVOLUTION.
        onnx_node: that it comes from; empty where this TensorRT does not tell.
        dtype: of its first output.
        shape: of its first output; None for the open batch axis.
    """

    name: str
    kind: str
    onnx_node: str
    dtype: str
    shape: tuple[int | None, ...]


def build_engine(onnx: bytes, options: EngineOptions, library: TensorRT) -> tuple[bytes, tuple[EngineLayer, ...]]:
    """Build.

    Args:
        onnx: the file's content, weights included.
        options: what for.
        library: to build with.

    Returns:
        The engine, and the layers it was built from.

    Raises:
        ConfigError: a target that this library does not build for, or targets for one that builds for none.
        DeviceError: too little memory.
        BackendError: the library is too old, or refuses the model; the message names ONNX nodes where it does.
    """
    if library.too_old:
        raise BackendError(library.too_old)
    trt = library.module
    library.log.clear()
    builder = library.new(trt.Builder)
    network = builder.create_network(library.network_flags())
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(onnx):
        errors = "; ".join(_parse_error(parser.get_error(i)) for i in range(parser.num_errors))
        raise BackendError(f"{library.name} {library.version} cannot read the model: {errors or library.log.text()}")
    config = builder.create_builder_config()
    _set_targets(config, options.targets, library)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    _add_profile(builder, network, config, options.max_batch)
    layers = tuple(_layer(network.get_layer(i)) for i in range(network.num_layers))
    content = builder.build_serialized_network(network, config)
    if content is None:
        said = library.log.text() or "it gives no reason"
        kind = DeviceError if library.log.wants_memory else BackendError
        advice = f"; {OUT_OF_MEMORY}" if kind is DeviceError else ""
        raise kind(f"{library.name} {library.version} builds no engine of the model: {said}{advice}")
    return bytes(content), layers


def _set_targets(config: Any, targets: tuple[str, ...], library: TensorRT) -> None:
    if not targets:
        return
    known = getattr(library.module, "ComputeCapability", None)
    if known is None:
        raise ConfigError(f"{library.name} {library.version} builds for the GPU of this machine alone")
    members = {f"sm_{name[2:]}": member for name, member in known.__members__.items() if name.startswith("SM")}
    for target in targets:
        if target not in members:
            raise ConfigError(
                f"{library.name} {library.version} has no target {target}; it has {', '.join(sorted(members))}. "
                "Engines for a Jetson are built on the Jetson"
            )
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(members[target], index)


def _add_profile(builder: Any, network: Any, config: Any, max_batch: int) -> None:
    """Any batch from 1 to the largest, where the batch axis is open."""
    profile = builder.create_optimization_profile()
    open_axes = False
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            if shape[0] > max_batch:
                raise ConfigError(f"the model was exported for batch {shape[0]} alone, not for {max_batch}")
            continue  # a fixed batch, which a larger one does not change
        open_axes = True
        one, most = (tuple(batch if size == -1 else size for size in shape) for batch in (1, max_batch))
        profile.set_shape(tensor.name, one, most, most)
    if open_axes:
        if not profile:  # a wrong shape raises nothing
            raise BackendError("TensorRT refuses the range of batches; report it with the model's settings")
        config.add_optimization_profile(profile)


def _layer(layer: Any) -> EngineLayer:
    output = layer.get_output(0)
    shape = tuple(None if size == -1 else int(size) for size in output.shape) if output is not None else ()
    told = getattr(layer, "metadata", "")
    node = told.removeprefix("[ONNX Layer: ").removesuffix("]")
    dtype = output.dtype.name if output is not None else ""
    return EngineLayer(layer.name, layer.type.name, node, dtype, shape)


def _parse_error(error: Any) -> str:
    node, operator = error.node_name(), error.node_operator()
    where = f"node {node!r} ({operator})" if node or operator else f"node {error.node()}"
    return f"{where}: {error.code().name}, {error.desc()}"
