import numpy as np
import pytest

from edge_sdk.errors import TensorError
from edge_sdk.tensors import DTYPES, TensorSpec, check_feeds

IMAGE = TensorSpec("image", "UINT8", (None, 4, 4, 3))
NOISE = TensorSpec("noise", "FP32", (None, 2), source="normal")


def test_bytes_per_sample_ignores_the_open_batch():
    assert IMAGE.bytes_per_sample == 48
    assert NOISE.bytes_per_sample == 8


def test_dtypes_have_the_protocols_sizes():
    sizes = {name: dtype.itemsize for name, dtype in DTYPES.items()}
    assert sizes == {
        "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
        "FP16": 2, "FP32": 4, "FP64": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "expected tensors ['image', 'noise'], got []"),
        ({"image": np.zeros((1, 4, 4, 3), np.uint8), "noise": np.zeros((1, 2), np.float64)}, "got FP64"),
        ({"image": np.zeros((1, 4, 4, 1), np.uint8), "noise": np.zeros((1, 2), np.float32)}, "got [1, 4, 4, 1]"),
        ({"image": np.zeros((4, 4, 3), np.uint8), "noise": np.zeros((1, 2), np.float32)}, "got [4, 4, 3]"),
        ({"image": np.zeros((0, 4, 4, 3), np.uint8), "noise": np.zeros((0, 2), np.float32)}, "empty"),
        ({"image": np.zeros((2, 4, 4, 3), np.uint8), "noise": np.zeros((3, 2), np.float32)}, "differ in batch size"),
    ],
)
def test_check_feeds_names_the_difference(feeds, words):
    with pytest.raises(TensorError, match=words.replace("[", r"\[").replace("]", r"\]")):
        check_feeds((IMAGE, NOISE), feeds)


def test_check_feeds_accepts_what_fits():
    check_feeds((IMAGE, NOISE), {"image": np.zeros((2, 4, 4, 3), np.uint8), "noise": np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(TensorError, match="not finite"):
        NOISE.check_finite(np.array([[0, value]], np.float32))


@pytest.mark.parametrize(("dtype", "shape"), [("BYTES", (1,)), ("FP32", (None, None)), ("FP32", (1, -1))])
def test_a_spec_that_cannot_be_is_refused(dtype, shape):
    with pytest.raises(TensorError):
        TensorSpec("x", dtype, shape)
