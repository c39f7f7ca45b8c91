"""Open Inference Protocol v2 over HTTP: JSON header and binary tensors, encoded and decoded; no sockets here.

Client and server both use this module. Sources: the protocol's REST text and Triton's binary tensor data extension.
A body is a JSON object, then the raw little-endian buffers of its binary tensors, in the order in which the JSON
lists them; ``Inference-Header-Content-Length`` is the JSON's length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from .errors import TensorError
from .tensors import DTYPES, Array, TensorSpec, dtype_name

__all__ = [
    "HEADER_LENGTH",
    "InferRequest",
    "InferResponse",
    "RequestedOutput",
    "Tensor",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
    "tensor_metadata",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_RANK = 16
MAX_TENSORS = 256
"""Inputs of a request, and outputs that it asks for: each is looked at by itself."""
MAX_JSON_BYTES = 4 * 2**20
"""Numbers in JSON take ten times their size in memory, and long to parse."""
MAX_JSON_PARTS = 2**17
"""Lists, objects and their entries in it: a parser makes them in one go, in which no other thread of Python goes on."""
PIECE = 2**16
"""Numbers of a list that are converted in one go."""

Scalar = str | int | float | bool
Parameters = dict[str, Scalar]


def _check_flag(name: str, parameters: Parameters) -> None:
    if not isinstance(parameters.get(name, False), bool):
        raise ValueError(f"{name} is {parameters[name]!r}; expected true or false")


class Tensor(msgspec.Struct, omit_defaults=True):
    """One tensor in the JSON part; ``data`` is absent where ``parameters.binary_data_size`` stands."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None


class RequestedOutput(msgspec.Struct, omit_defaults=True):
    """An output that a client asks for."""

    name: str
    parameters: Parameters = {}

    def __post_init__(self) -> None:
        _check_flag("binary_data", self.parameters)


class _RequestHeader(msgspec.Struct, omit_defaults=True):
    inputs: list[Tensor]
    id: str = ""
    parameters: Parameters = {}
    outputs: list[RequestedOutput] | None = None

    def __post_init__(self) -> None:
        _check_flag("binary_data_output", self.parameters)


class _ResponseHeader(msgspec.Struct, omit_defaults=True):
    model_name: str
    outputs: list[Tensor]
    model_version: str = ""
    id: str = ""
    parameters: Parameters = {}


class InferRequest(msgspec.Struct):
    """A decoded inference request: arrays by name, views of the body where it was binary."""

    inputs: dict[str, Array]
    id: str = ""
    parameters: Parameters = {}
    outputs: list[RequestedOutput] | None = None

    def wants_binary(self, output: str) -> bool:
        """Whether this output shall travel as raw bytes: its own ``binary_data``, else ``binary_data_output``."""
        asked = next((o for o in self.outputs or () if o.name == output), None)
        default = self.parameters.get("binary_data_output", False)
        return bool(asked.parameters.get("binary_data", default) if asked else default)


class InferResponse(msgspec.Struct):
    """A decoded inference response: arrays by name."""

    model_name: str
    outputs: dict[str, Array]
    id: str = ""
    parameters: Parameters = {}


_LITTLE_ENDIAN = {name: dtype.newbyteorder("<") for name, dtype in DTYPES.items()}

_request_decoder = msgspec.json.Decoder(_RequestHeader)
_response_decoder = msgspec.json.Decoder(_ResponseHeader)
_encoder = msgspec.json.Encoder()


def encode_request(
    inputs: Mapping[str, Array], request_id: str = "", parameters: Parameters | None = None
) -> tuple[dict[str, str], list[bytes]]:
    """HTTP headers and body chunks of a request whose tensors, and whose answer's, are binary.

    Raises:
        TensorError: an array has no dtype of the protocol.
    """
    tensors = [_describe(name, array, binary=True) for name, array in inputs.items()]
    header = _encoder.encode(_RequestHeader(tensors, request_id, {"binary_data_output": True, **(parameters or {})}))
    return _headers(len(header)), [header, *(_raw(array) for array in inputs.values())]


def encode_response(
    model_name: str,
    model_version: str,
    outputs: Mapping[str, Array],
    *,
    request: InferRequest,
    parameters: Parameters,
) -> tuple[dict[str, str], list[bytes]]:
    """HTTP headers and body chunks of the answer, each output in binary or JSON as the request asked."""
    binary = {name: request.wants_binary(name) for name in outputs}
    tensors = [_describe(name, array, binary=binary[name]) for name, array in outputs.items()]
    header = _encoder.encode(_ResponseHeader(model_name, tensors, model_version, request.id, parameters))
    chunks = [header, *(_raw(array) for name, array in outputs.items() if binary[name])]
    if any(binary.values()):
        return _headers(len(header)), chunks
    return {"Content-Type": "application/json"}, chunks


def decode_request(body: bytes, header_length: str | None) -> InferRequest:
    """An inference request from an HTTP body.

    Args:
        body: decompressed.
        header_length: the value of ``Inference-Header-Content-Length``, or None if there was none: all JSON.

    Raises:
        TensorError: the body is not a request; the message says where.
    """
    json_part, raw = _split(body, header_length)
    try:
        header = _request_decoder.decode(json_part)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TensorError(f"the request's JSON part is not an inference request: {error}") from error
    check_counts(len(header.inputs), len(header.outputs or ()))
    return InferRequest(_decode_tensors(header.inputs, raw), header.id, header.parameters, header.outputs)


def decode_raw_request(body: bytes, inputs: Sequence[TensorSpec]) -> InferRequest:
    """A request whose body is a tensor and nothing else: Triton's raw binary request, whose answer is binary.

    Args:
        body: one row's numbers.
        inputs: of the model.

    Raises:
        TensorError: the model has several inputs or more than one free size, or the body does not fill its shape.
    """
    if len(inputs) != 1:
        raise TensorError(f"a raw binary request is for a model of one input; this one has {len(inputs)}")
    spec = inputs[0]
    shape = [1 if axis == 0 and size is None else size for axis, size in enumerate(spec.shape)]
    known = spec.numpy_dtype.itemsize * math.prod(size for size in shape if size is not None)
    if shape.count(None) > 1 or (None in shape and (not known or len(body) % known)):
        raise TensorError(
            f"{len(body)} raw bytes give no shape for input {spec.name!r}; send a request that states one"
        )
    whole = [len(body) // known if size is None else size for size in shape]
    tensor = Tensor(spec.name, whole, spec.dtype, {"binary_data_size": len(body)})
    return InferRequest(_decode_tensors([tensor], memoryview(body)), parameters={"binary_data_output": True})


def decode_response(body: bytes, header_length: str | None) -> InferResponse:
    """An inference response from an HTTP body.

    Raises:
        TensorError: the body is not a response; the message says where.
    """
    json_part, raw = _split(body, header_length)
    try:
        header = _response_decoder.decode(json_part)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TensorError(f"the answer's JSON part is not an inference response: {error}") from error
    return InferResponse(header.model_name, _decode_tensors(header.outputs, raw), header.id, header.parameters)


def tensor_metadata(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """Inputs or outputs as a model's metadata lists them; -1 is a variable size."""
    return [
        {"name": s.name, "datatype": s.dtype, "shape": [-1 if size is None else size for size in s.shape]}
        for s in specs
    ]


def check_counts(num_inputs: int, num_outputs: int) -> None:
    """Of the tensors that a request has and asks for, before any of them is decoded.

    Raises:
        TensorError: there are no inputs, or too many of either.
    """
    if not num_inputs:
        raise TensorError("the request has no inputs")
    if max(num_inputs, num_outputs) > MAX_TENSORS:
        raise TensorError(f"{num_inputs} inputs and {num_outputs} outputs; expected at most {MAX_TENSORS} of each")


def num_elements(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Of a tensor as a message describes it.

    Raises:
        TensorError: the datatype is none of the protocol's numbers, or the shape none.
    """
    if datatype not in DTYPES:
        raise TensorError(f"tensor {name!r}: datatype {datatype!r} is not one of {', '.join(DTYPES)}")
    if len(shape) > MAX_RANK or any(not 0 <= size < 2**31 for size in shape):
        raise TensorError(f"tensor {name!r}: {list(shape)} is not a shape")
    return math.prod(shape)  # Python's integers: no overflow


def array_of(numbers: Sequence[Scalar], dtype: np.dtype[Any]) -> Array:
    """Numbers of a message as an array ``(len(numbers),)``.

    Raises:
        ValueError: one is out of the dtype's range, which NumPy 1 would wrap.
    """
    array = np.empty(len(numbers), dtype)
    for start in range(0, len(numbers), PIECE):
        piece = numbers[start : start + PIECE]
        if dtype.kind in "iu":
            bounds = np.iinfo(dtype)
            if min(piece) < bounds.min or max(piece) > bounds.max:  # type: ignore[operator]
                raise ValueError("an element is out of range")
        with np.errstate(over="ignore"):
            array[start : start + PIECE] = np.array(piece, dtype)
    return array


def _headers(header_length: int) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(header_length)}


def _describe(name: str, array: Array, *, binary: bool) -> Tensor:
    datatype = dtype_name(array.dtype)
    if datatype not in DTYPES:
        raise TensorError(f"tensor {name!r}: dtype {array.dtype} has no name in the protocol")
    tensor = Tensor(name, list(array.shape), datatype)
    if binary:
        tensor.parameters = {"binary_data_size": array.nbytes}
    elif array.dtype == np.float16:
        raise TensorError(f"tensor {name!r}: FP16 has no JSON form in the protocol; ask for binary data")
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        raise TensorError(f"tensor {name!r}: has values that are not finite, which JSON has not; ask for binary data")
    else:
        tensor.data = array.ravel().tolist()
    return tensor


def _raw(array: Array) -> bytes:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)  # a copy on a big-endian machine only
    return little.tobytes()


def _split(body: bytes, header_length: str | None) -> tuple[bytes | memoryview, memoryview]:
    if header_length is None:
        return _bounded(body), memoryview(b"")
    if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 20:
        raise TensorError(f"{HEADER_LENGTH} is {header_length[:40]!r}; expected an integer of at most 20 digits")
    if not 0 < int(header_length) <= len(body):
        raise TensorError(
            f"{HEADER_LENGTH} is {header_length[:40]!r}; expected an integer from 1 to the body's {len(body)} bytes"
        )
    view = memoryview(body)
    length = int(header_length)
    return _bounded(view[:length]), view[length:]


def _bounded(json_part: bytes | memoryview) -> bytes | memoryview:
    if len(json_part) > MAX_JSON_BYTES:
        raise TensorError(f"the JSON part has more than {MAX_JSON_BYTES} bytes; send tensors as binary data")
    if len(json_part) > MAX_JSON_PARTS and sum(map(bytes(json_part).count, (b"[", b"{", b":"))) > MAX_JSON_PARTS:
        raise TensorError(
            f"the JSON part has more than {MAX_JSON_PARTS} lists, objects and entries; send flat or binary data"
        )
    return json_part


def _decode_tensors(tensors: list[Tensor], raw: memoryview) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    offset = 0
    for tensor in tensors:
        if tensor.name in arrays:
            raise TensorError(f"tensor {tensor.name!r} is given twice")
        count = num_elements(tensor.name, tensor.datatype, tensor.shape)
        dtype = DTYPES[tensor.datatype]
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            arrays[tensor.name] = _from_json(tensor, count, dtype)
            continue
        if tensor.data is not None:
            raise TensorError(f"tensor {tensor.name!r}: has data and binary_data_size; expected one of them")
        if isinstance(size, bool) or size != count * dtype.itemsize:
            raise TensorError(
                f"tensor {tensor.name!r}: binary_data_size {size!r}, but {tensor.datatype} of shape "
                f"{tensor.shape} has {count * dtype.itemsize} bytes"
            )
        if offset + int(size) > len(raw):
            raise TensorError(f"tensor {tensor.name!r}: {size} bytes declared, {len(raw) - offset} left in the body")
        array = np.frombuffer(raw, _LITTLE_ENDIAN[tensor.datatype], count, offset)
        if array.dtype != dtype:  # on a big-endian machine
            array = array.astype(dtype)
        try:
            # The JSON part ends anywhere, and not every processor reads unaligned numbers.
            arrays[tensor.name] = (array if array.flags.aligned else array.copy()).reshape(tensor.shape)
        except ValueError as error:  # sizes whose product overflows beside a zero
            raise TensorError(f"tensor {tensor.name!r}: {tensor.shape} is not a shape") from error
        if dtype == np.bool_ and count and np.frombuffer(raw, np.uint8, count, offset).max() > 1:
            raise TensorError(f"tensor {tensor.name!r}: a BOOL byte is neither 0 nor 1")
        offset += int(size)
    if offset != len(raw):
        raise TensorError(f"{len(raw) - offset} bytes follow the last tensor")
    return arrays


def _from_json(tensor: Tensor, count: int, dtype: np.dtype[Any]) -> Array:
    if tensor.data is None:
        raise TensorError(f"tensor {tensor.name!r}: neither data nor binary_data_size")
    if dtype == np.float16:
        raise TensorError(f"tensor {tensor.name!r}: FP16 has no JSON form in the protocol; send binary data")
    try:
        leaves = _flatten(tensor.data, tensor.shape)
        if len(leaves) != count:
            raise ValueError(f"it has {len(leaves)} elements")
        allowed = _JSON_TYPES[dtype.kind]
        if any(set(map(type, leaves[start : start + PIECE])) - allowed for start in range(0, count, PIECE)):
            raise ValueError("an element is of another type")
        array = array_of(leaves, dtype).reshape(tensor.shape)
        if dtype.kind == "f" and not np.isfinite(array).all():  # JSON has no infinity: this one overflowed
            raise ValueError("an element is out of range")
    except (ValueError, OverflowError) as error:
        raise TensorError(
            f"tensor {tensor.name!r}: data is not {tensor.datatype} of shape {tensor.shape}: {error}"
        ) from error
    return array


_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


def _flatten(data: list[Any], shape: list[int]) -> list[Any]:
    """The elements of a flat list, or of lists nested exactly as the shape says; the depth is bounded by its rank."""
    if not any(isinstance(item, list) for item in data):
        return data
    if len(shape) < 2 or len(data) != shape[0] or not all(isinstance(item, list) for item in data):
        raise ValueError("it is nested otherwise")
    rest = shape[1:]
    if len(rest) == 1:
        if any(len(item) != rest[0] for item in data):
            raise ValueError("it is nested otherwise")
        return [leaf for item in data for leaf in item]
    return [leaf for item in data for leaf in _nested(item, rest)]


def _nested(data: list[Any], shape: list[int]) -> list[Any]:
    if len(data) != shape[0] or (data and not isinstance(data[0], list)):
        raise ValueError("it is nested otherwise")
    return _flatten(data, shape)
