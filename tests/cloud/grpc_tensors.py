"""Arrays to gRPC messages and back, over the bytes that travel."""

from contextlib import suppress

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloud.grpc_tensors import decode_request, encode_response
from cloud.protobuf import open_inference_pb2 as messages
from edge_sdk.errors import TensorError
from edge_sdk.tensors import DTYPES, dtype_name

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
dtypes = st.sampled_from(sorted(DTYPES.values(), key=str))
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes))
tensors = st.dictionaries(st.text(min_size=1, max_size=8), arrays, min_size=1, max_size=3)


def _request(found):
    request = messages.ModelInferRequest(id="7")
    for name, array in found.items():
        request.inputs.add(name=name, datatype=dtype_name(array.dtype), shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def _as_request(answer):
    """What was answered, as if it were asked."""
    request = messages.ModelInferRequest(raw_input_contents=answer.raw_output_contents)
    for tensor in answer.outputs:
        request.inputs.add().ParseFromString(tensor.SerializeToString())  # the fields have the same numbers
    return messages.ModelInferRequest.FromString(request.SerializeToString())


@given(tensors)
def test_raw_tensors_survive_the_wire(found):
    request = messages.ModelInferRequest.FromString(_request(found).SerializeToString())
    assert decode_request(request).id == "7"
    answer = encode_response("m", "1", request, found, {"queue_us": 3})
    for decoded in (decode_request(request).inputs, decode_request(_as_request(answer)).inputs):
        assert list(decoded) == list(found)
        for name, array in found.items():
            assert (decoded[name].dtype, decoded[name].shape) == (array.dtype, array.shape)
            assert decoded[name].tobytes() == array.tobytes()  # NaNs included, bit for bit


@given(tensors)
def test_typed_tensors_survive_the_wire(found):
    found = {name: array for name, array in found.items() if array.dtype != np.float16}
    answer = encode_response("m", "1", messages.ModelInferRequest(), found, {})
    assert not answer.raw_output_contents
    if found:
        decoded = decode_request(_as_request(answer)).inputs
        for name, array in found.items():
            assert decoded[name].dtype == array.dtype
            np.testing.assert_array_equal(decoded[name], array)


@given(st.data())
def test_a_damaged_request_decodes_or_is_refused(data):
    content = bytearray(_request({"x": np.arange(6, dtype=np.float32).reshape(2, 3)}).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        request = messages.ModelInferRequest.FromString(bytes(content))
    except DecodeError:
        return
    with suppress(TensorError):
        decode_request(request)


def _typed(datatype, field, numbers, **how):
    request = messages.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, **{"shape": [len(numbers)], **how})
    getattr(tensor.contents, field).extend(numbers)
    return request


def _many(count, num_outputs=0):
    request = messages.ModelInferRequest()
    for i in range(count):
        request.inputs.add(name=str(i), datatype="INT8", shape=[1]).contents.int_contents.append(i % 100)
    for i in range(num_outputs):
        request.outputs.add(name=str(i))
    return request


def test_as_many_tensors_as_may_be_are_decoded():
    inputs = decode_request(_many(256, 256)).inputs
    assert [int(array[0]) for array in inputs.values()] == [i % 100 for i in range(256)]


def _two_large():
    request = _typed("FP32", "fp32_contents", [0.0] * 600_000)
    request.inputs.append(request.inputs[0])
    return request


def _raw(content=bytes(4), **how):
    request = messages.ModelInferRequest(raw_input_contents=[content])
    request.inputs.add(**{"name": "x", "datatype": "FP32", "shape": [1], **how})
    return request


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (messages.ModelInferRequest(), "no inputs"),
        (_many(257), "257 inputs and 0 outputs; expected at most 256"),
        (_many(1, 300), "1 inputs and 300 outputs; expected at most 256"),
        (_typed("INT8", "int_contents", [200]), "out of range"),
        (_typed("UINT16", "uint_contents", [2**16]), "out of range"),
        (_typed("FP16", "fp32_contents", [1.0]), "FP16 travels as raw bytes alone"),
        (_typed("FP32", "fp64_contents", [1.0]), "FP32 goes into fp32_contents, got fp64_contents"),
        (_typed("FP32", "fp32_contents", [1.0], shape=[2]), r"1 elements for shape \[2\]"),
        (_typed("FP32", "fp32_contents", [], shape=[0, *[2**31 - 1] * 5]), "is not a shape"),
        (_typed("FP32", "fp32_contents", [], shape=[0, 2**31]), "is not a shape"),
        (_typed("FP32", "fp32_contents", [1.0], shape=[1] * 17), "is not a shape"),
        (_two_large(), "contents of more than 4194304 bytes"),
        (_raw(bytes(5)), "5 raw bytes are no FP32"),
        (_raw(bytes(8)), "2 elements for shape"),
        (_raw(datatype="BYTES"), "datatype 'BYTES' is not one of"),
        (_raw(b"\2", datatype="BOOL"), "neither 0 nor 1"),
    ],
)
def test_what_is_no_request_is_refused(request_, words):
    with pytest.raises(TensorError, match=words):
        decode_request(request_)
