import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sdk import oip
from edge_sdk.errors import TensorError
from edge_sdk.tensors import DTYPES

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
dtypes = st.sampled_from(sorted(DTYPES.values(), key=str))
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes))


@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays, min_size=1, max_size=3), st.text(max_size=8))
def test_a_binary_request_survives_the_wire(tensors, request_id):
    headers, chunks = oip.encode_request(tensors, request_id)
    decoded = oip.decode_request(b"".join(chunks), headers[oip.HEADER_LENGTH])
    assert decoded.id == request_id
    assert list(decoded.inputs) == list(tensors)
    for name, array in tensors.items():
        assert decoded.inputs[name].dtype == array.dtype
        assert decoded.inputs[name].shape == array.shape
        assert decoded.inputs[name].tobytes() == array.tobytes()  # NaNs included, bit for bit


@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays, min_size=1, max_size=3), st.booleans())
def test_a_response_survives_the_wire(tensors, binary):
    tensors = {name: a for name, a in tensors.items() if binary or (a.dtype != np.float16 and np.isfinite(a).all())}
    request = oip.InferRequest({}, "7", {"binary_data_output": binary})
    headers, chunks = oip.encode_response("m", "1", tensors, request=request, parameters={"queue_us": 3})
    decoded = oip.decode_response(b"".join(chunks), headers.get(oip.HEADER_LENGTH))
    assert (decoded.model_name, decoded.id, decoded.parameters) == ("m", "7", {"queue_us": 3})
    for name, array in tensors.items():
        assert decoded.outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(decoded.outputs[name], array)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_json_cannot_say_is_not_said(value):
    outputs = {"y": np.array([1, value], np.float32)}
    with pytest.raises(TensorError, match=r"'y': has values that are not finite.*ask for binary data"):
        oip.encode_response("m", "1", outputs, request=oip.InferRequest({}), parameters={})


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=6), st.integers(0, 250).map(str)))
def test_any_bytes_decode_or_are_refused(body, length):
    with suppress(TensorError):
        oip.decode_request(body, length)
    with suppress(TensorError):
        oip.decode_response(body, length)


@given(st.data())
def test_a_damaged_request_decodes_or_is_refused(data):
    headers, chunks = oip.encode_request({"x": np.arange(6, dtype=np.float32).reshape(2, 3)}, "id")
    body = bytearray(b"".join(chunks))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with suppress(TensorError):
        oip.decode_request(bytes(body), headers[oip.HEADER_LENGTH])


def test_the_binary_layout_is_the_specifications():
    headers, chunks = oip.encode_request({"x": np.array([[1.0, -2.0]], np.float32), "y": np.array([3], np.uint16)}, "r")
    body = b"".join(chunks)
    length = int(headers["Inference-Header-Content-Length"])
    assert headers["Content-Type"] == "application/octet-stream"
    assert json.loads(body[:length]) == {
        "id": "r",
        "parameters": {"binary_data_output": True},
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
            {"name": "y", "shape": [1], "datatype": "UINT16", "parameters": {"binary_data_size": 2}},
        ],
    }
    assert body[length:] == bytes.fromhex("0000803f 000000c0 0300")


@pytest.mark.parametrize("shape", [[4], [2, 2], [2, 1, 2], [1, 4, 1], [2, 0, 3]])
def test_json_data_may_be_flat_or_nested(shape):
    expected = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    for data in (expected.tolist(), expected.ravel().tolist()):
        body = _json_request(data=data, shape=shape, datatype="INT32")
        np.testing.assert_array_equal(oip.decode_request(body, None).inputs["x"], expected)


def test_one_output_may_be_binary_and_another_json():
    request = oip.decode_request(
        json.dumps(
            {
                "inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}],
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
            }
        ).encode(),
        None,
    )
    assert request.wants_binary("a")
    assert not request.wants_binary("b")


def _json_request(**tensor) -> bytes:
    return json.dumps({"inputs": [{"name": "x", **tensor}]}).encode()


def _binary(tensor: dict, raw: bytes) -> tuple[bytes, str]:
    header = json.dumps({"inputs": [{"name": "x", **tensor}]}).encode()
    return header + raw, str(len(header))


FLOATS = {"shape": [2], "datatype": "FP32"}
BAD = {
    "no JSON": (b"hello", None, "not an inference request"),
    "empty body": (b"", None, "not an inference request"),
    "a list": (b"[]", None, "Expected `object`"),
    "no inputs": (b"{}", None, "inputs"),
    "empty inputs": (b'{"inputs": []}', None, "no inputs"),
    "too many inputs": (
        json.dumps({"inputs": [{"name": str(i), **FLOATS, "data": ["no", "numbers"]} for i in range(257)]}).encode(),
        None,
        "257 inputs and 0 outputs; expected at most 256",
    ),
    "too many outputs": (
        json.dumps({"inputs": [{"name": "x", **FLOATS}], "outputs": [{"name": "y"}] * 300}).encode(), None,
        "1 inputs and 300 outputs; expected at most 256",
    ),
    "too many lists": (
        b'{"inputs":[{"name":"x","shape":[200000,0],"datatype":"FP32","data":[' + b"[]," * 199_999 + b"[]]}]}", None,
        "more than 131072 lists, objects and entries",
    ),
    "too many objects": (b'{"outputs":[' + b"{}," * 200_000 + b"{}]}", None, "more than 131072 lists, objects"),
    "too many entries": (
        b'{"parameters":{' + b'"a":1,' * 200_000 + b'"b":1}}', None, "more than 131072 lists, objects and entries",
    ),
    "unknown datatype": (_json_request(shape=[1], datatype="FP8", data=[1]), None, "'FP8' is not one of"),
    "BYTES": (_json_request(shape=[1], datatype="BYTES", data=["a"]), None, "'BYTES' is not one of"),
    "binary_data that is no truth value": (
        b'{"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": "false"}}]}', None,
        "binary_data is 'false'; expected true or false",
    ),
    "binary_data_output that is none": (
        b'{"inputs": [], "parameters": {"binary_data_output": 1}}', None, "binary_data_output is 1",
    ),
    "negative size": (_json_request(shape=[-1], datatype="FP32", data=[1]), None, "not a shape"),
    "size that is no integer": (_json_request(shape=[1.5], datatype="FP32", data=[1]), None, "Expected `int`"),
    "size over int64": (_json_request(shape=[2**70], datatype="FP32", data=[1]), None, "not a shape"),
    "overflowing shape": (_json_request(shape=[2**30] * 8, datatype="FP32", data=[1]), None, "it has 1 elements"),
    "too many axes": (_json_request(shape=[1] * 40, datatype="FP32", data=[1]), None, "not a shape"),
    "too few values": (_json_request(**FLOATS, data=[1.0]), None, "it has 1 elements"),
    "ragged": (_json_request(shape=[2, 2], datatype="FP32", data=[[1, 2, 3], [4]]), None, "nested otherwise"),
    "strings": (_json_request(**FLOATS, data=["a", "b"]), None, "not FP32"),
    "null": (_json_request(**FLOATS, data=[None, 1.0]), None, "not FP32"),
    "NaN": (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', None, "malformed"),
    "float for an integer": (_json_request(shape=[1], datatype="INT32", data=[1.5]), None, "not INT32"),
    "negative for unsigned": (_json_request(shape=[1], datatype="UINT8", data=[-1]), None, "out of range"),
    "too large for its type": (_json_request(shape=[1], datatype="INT8", data=[200]), None, "out of range"),
    "integer for a BOOL": (_json_request(shape=[1], datatype="BOOL", data=[2]), None, "not BOOL"),
    "too large for FP32": (_json_request(shape=[1], datatype="FP32", data=[1e300]), None, "out of range"),
    "FP16 in JSON": (_json_request(shape=[1], datatype="FP16", data=[1.0]), None, "no JSON form"),
    "neither data nor size": (_json_request(**FLOATS), None, "neither data nor"),
    "data and size": (
        _json_request(**FLOATS, data=[1.0, 2.0], parameters={"binary_data_size": 8}), None, "expected one of them",
    ),
    "nested parameters": (_json_request(**FLOATS, data=[1, 2], parameters={"a": {}}), None, "parameters"),
    "twice the same name": (
        json.dumps({"inputs": [{"name": "x", **FLOATS, "data": [1, 2]}] * 2}).encode(), None, "given twice",
    ),
    "deep nesting": (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + b"[" * 50 + b"1" + b"]" * 50
                     + b"}]}", None, "nested otherwise"),
    "very deep nesting": (b'{"inputs":' + b"[" * 5000, None, "not an inference request"),
    "header length no number": (b"{}", "two", "expected an integer"),
    "header length negative": (b"{}", "-1", "expected an integer"),
    "header length beyond the body": (b"{}", "3", "expected an integer"),
    "header length zero": (b"{}", "0", "expected an integer"),
    "header length of many digits": (b"{}", "0" * 19 + "1" + "9" * 5000, "at most 20 digits"),
    "overflow beside a zero": (
        *_binary({"shape": [0] + [2**31 - 1] * 3, "datatype": "FP32", "parameters": {"binary_data_size": 0}}, b""),
        "not a shape",
    ),
    "long JSON": (b'{"inputs":[' + b" " * 5_000_000 + b"]}", None, "send tensors as binary data"),
    "header length huge": (b"{}", "9" * 400, "at most 20 digits"),
    "wrong binary size": (*_binary({**FLOATS, "parameters": {"binary_data_size": 4}}, bytes(4)), "has 8 bytes"),
    "binary size a string": (*_binary({**FLOATS, "parameters": {"binary_data_size": "8"}}, bytes(8)), "has 8 bytes"),
    "body cut short": (*_binary({**FLOATS, "parameters": {"binary_data_size": 8}}, bytes(7)), "7 left"),
    "bytes left over": (*_binary({**FLOATS, "parameters": {"binary_data_size": 8}}, bytes(9)), "1 bytes follow"),
    "BOOL byte of 2": (
        *_binary({"shape": [1], "datatype": "BOOL", "parameters": {"binary_data_size": 1}}, b"\x02"), "neither 0 nor 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_body_is_refused_with_its_reason(case):
    body, length, words = BAD[case]
    with pytest.raises(TensorError) as caught:
        oip.decode_request(body, length)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_as_many_tensors_as_may_be_are_decoded():
    tensors = [{"name": str(i), "shape": [1], "datatype": "INT8", "data": [i % 100]} for i in range(256)]
    asked = {"inputs": tensors, "outputs": [{"name": str(i)} for i in range(256)]}
    request = oip.decode_request(json.dumps(asked).encode(), None)
    assert [int(array[0]) for array in request.inputs.values()] == [i % 100 for i in range(256)]


@pytest.mark.parametrize(
    ("last", "words"), [(128, "out of range"), (1.5, "of another type"), (True, "of another type"), (7, "")]
)
def test_the_last_of_many_numbers_is_looked_at_too(last, words):
    numbers = [i % 100 for i in range(oip.PIECE)] + [last]
    body = _json_request(shape=[len(numbers)], datatype="INT8", data=numbers)
    if words:
        with pytest.raises(TensorError, match=words):
            oip.decode_request(body, None)
    else:
        np.testing.assert_array_equal(oip.decode_request(body, None).inputs["x"], numbers)


def test_json_without_end_is_parsed_on_neither_side():
    body = json.dumps({"model_name": "m", "outputs": [], "id": "a" * oip.MAX_JSON_BYTES}).encode()
    for decode in (oip.decode_request, oip.decode_response):
        for length in (None, str(len(body))):
            with pytest.raises(TensorError, match="JSON part has more than 4194304 bytes"):
                decode(body, length)
