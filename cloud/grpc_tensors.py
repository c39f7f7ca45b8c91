"""Tensors of gRPC messages to arrays and back.

A request carries all its tensors either as raw bytes or as typed numbers; the answer follows it. Half floats travel as
raw bytes alone. Source: the Open Inference Protocol's gRPC text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sdk.errors import TensorError
from edge_sdk.oip import (
    MAX_JSON_BYTES,
    InferRequest,
    Parameters,
    RequestedOutput,
    array_of,
    check_counts,
    num_elements,
)
from edge_sdk.tensors import DTYPES, Array, dtype_name

from .protobuf import open_inference_pb2 as messages

__all__ = ["decode_request", "encode_response"]

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def decode_request(message: messages.ModelInferRequest) -> InferRequest:
    """An inference request.

    Raises:
        TensorError: a tensor is not what the message says of it.
    """
    raw = message.raw_input_contents
    check_counts(len(message.inputs), len(message.outputs))
    if raw and len(raw) != len(message.inputs):
        raise TensorError(f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs; expected one for each")
    if not raw and sum(tensor.contents.ByteSize() for tensor in message.inputs) > MAX_JSON_BYTES:
        raise TensorError(f"contents of more than {MAX_JSON_BYTES} bytes; send them raw")
    inputs: dict[str, Array] = {}
    for i, tensor in enumerate(message.inputs):
        if tensor.name in inputs:
            raise TensorError(f"tensor {tensor.name!r} is given twice")
        count, shape = num_elements(tensor.name, tensor.datatype, tensor.shape), list(tensor.shape)
        array = _from_raw(tensor, raw[i]) if raw else _from_contents(tensor)
        if array.size != count:
            raise TensorError(f"tensor {tensor.name!r}: {array.size} elements for shape {shape}")
        try:
            inputs[tensor.name] = array.reshape(shape)
        except ValueError as error:  # sizes whose product overflows beside a zero
            raise TensorError(f"tensor {tensor.name!r}: {shape} is not a shape") from error
    outputs = [RequestedOutput(each.name, _parameters(each.parameters)) for each in message.outputs] or None
    return InferRequest(inputs, message.id, _parameters(message.parameters), outputs)


def encode_response(
    name: str, version: str, request: messages.ModelInferRequest, outputs: Mapping[str, Array], parameters: Parameters
) -> messages.ModelInferResponse:
    """The answer, raw where the request was.

    Raises:
        TensorError: half floats for a request that was not raw.
    """
    answer = messages.ModelInferResponse(model_name=name, model_version=version, id=request.id)
    for key, value in parameters.items():
        answer.parameters[key].int64_param = int(value)
    for key, array in outputs.items():
        datatype = dtype_name(array.dtype)
        tensor = answer.outputs.add(name=key, datatype=datatype, shape=array.shape)
        if request.raw_input_contents:
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)  # a copy on a big-endian machine only
            answer.raw_output_contents.append(little.tobytes())
        elif datatype not in _CONTENTS:
            raise TensorError(f"tensor {key!r}: {datatype} travels as raw bytes alone; send raw_input_contents")
        else:
            getattr(tensor.contents, _CONTENTS[datatype]).extend(array.ravel().tolist())
    return answer


def _from_raw(tensor: messages.ModelInferRequest.InferInputTensor, content: bytes) -> Array:
    if tensor.HasField("contents"):
        raise TensorError(f"tensor {tensor.name!r}: has contents beside raw_input_contents")
    dtype = DTYPES[tensor.datatype]
    if len(content) % dtype.itemsize:
        raise TensorError(f"tensor {tensor.name!r}: {len(content)} raw bytes are no {tensor.datatype}")
    array = np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype, copy=False)
    if dtype == np.bool_ and array.size and np.frombuffer(content, np.uint8).max() > 1:
        raise TensorError(f"tensor {tensor.name!r}: a BOOL byte is neither 0 nor 1")
    return array


def _from_contents(tensor: messages.ModelInferRequest.InferInputTensor) -> Array:
    if tensor.datatype not in _CONTENTS:
        raise TensorError(f"tensor {tensor.name!r}: {tensor.datatype} travels as raw bytes alone")
    field = _CONTENTS[tensor.datatype]
    given = [found.name for found, _ in tensor.contents.ListFields()]
    if given not in ([], [field]):
        raise TensorError(f"tensor {tensor.name!r}: {tensor.datatype} goes into {field}, got {', '.join(given)}")
    try:
        return array_of(getattr(tensor.contents, field), DTYPES[tensor.datatype])
    except ValueError as error:
        raise TensorError(f"tensor {tensor.name!r}: {error}") from error


def _parameters(given: Mapping[str, Any]) -> Parameters:
    found: Parameters = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(parameter, choice)
    return found
