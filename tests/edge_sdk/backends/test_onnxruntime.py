import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.errors import BackendError
from edge_sdk.tensors import TensorSpec


def _model(kind=TensorProto.FLOAT, operator="Identity"):
    x, y = (helper.make_tensor_value_info(name, kind, ["batch", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT, "FP32"), (TensorProto.FLOAT16, "FP16"), (TensorProto.DOUBLE, "FP64"),
        (TensorProto.UINT8, "UINT8"), (TensorProto.INT64, "INT64"), (TensorProto.BOOL, "BOOL"),
    ],
)  # fmt: skip
def test_every_dtype_comes_through(kind, dtype):
    with OnnxRuntimeBackend(_model(kind)) as backend:
        assert backend.inputs == (TensorSpec("x", dtype, (None, 3)),)
        x = np.ones((2, 3), backend.inputs[0].numpy_dtype)
        np.testing.assert_array_equal(backend.run({"x": x})["y"], x)


def test_what_is_no_model_is_refused():
    with pytest.raises(BackendError, match="refuses the model"):
        OnnxRuntimeBackend(b"no model")
    with pytest.raises(BackendError, match="refuses the model"):
        OnnxRuntimeBackend(_model(operator="NoSuchOperator"))


def test_a_type_the_protocol_cannot_carry_is_refused():
    with pytest.raises(BackendError, match="cannot carry"):
        OnnxRuntimeBackend(_model(TensorProto.STRING))


def test_a_failing_run_is_an_error_of_ours():
    with OnnxRuntimeBackend(_model()) as backend, pytest.raises(BackendError, match="ONNX Runtime failed"):
        backend.run({"x": np.ones((2, 4), np.float32)})


def test_threads_are_taken():
    onnx.checker.check_model(_model())
    with OnnxRuntimeBackend(_model(), num_threads=1) as backend:
        assert backend.run({"x": np.zeros((1, 3), np.float32)})["y"].shape == (1, 3)
