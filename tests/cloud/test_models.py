"""A served model without HTTP: what it refuses, where it runs, what it notes."""

import asyncio
import threading

import numpy as np
import onnx
import pytest

import cloud.models
from cloud.batcher import Batching
from cloud.models import Model
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.errors import TensorError

FEATURES = {"features": np.random.default_rng(1).random((2, 12, 8, 8), np.float32)}


class _Watched(OnnxRuntimeBackend):
    """Notes the thread and the rows of each run."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model, 1)
        self.runs: list[tuple[str, int]] = []

    def run(self, feeds):
        self.runs.append((threading.current_thread().name, len(feeds["features"])))
        return super().run(feeds)


@pytest.fixture
def backend(bundle):
    return _Watched((bundle / "server0" / "tail.onnx").read_bytes())


@pytest.fixture
def model(backend):
    model = Model("tail", backend, {})
    yield model
    model.close()


async def _run(model, feeds):
    return await model.submit(feeds)


def test_it_is_warm_before_the_first_request(model, backend):
    assert set(backend.runs) == {("MainThread", 1)}
    backend.runs.clear()
    ran = asyncio.run(_run(model, FEATURES))
    assert backend.runs == [("model-tail", 2)]
    assert (ran.rows, ran.batch) == (2, 2)
    assert ran.outputs["logits"].shape == (2, 10)


def test_several_requests_get_what_each_alone_would(model, backend):
    async def all_at_once():
        return await asyncio.gather(*(_run(model, {"features": FEATURES["features"] * i}) for i in (1, 2, 3)))

    backend.runs.clear()
    together = asyncio.run(all_at_once())
    assert backend.runs == [("model-tail", 6)]
    for i, ran in zip((1, 2, 3), together, strict=True):
        alone = backend.run({"features": FEATURES["features"] * i})
        np.testing.assert_allclose(ran.outputs["logits"], alone["logits"], atol=1e-5)


def test_requests_that_name_their_inputs_in_another_order_are_joined():
    tensor, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    inputs = [tensor("a", kind, ["n", 2]), tensor("b", kind, ["n", 3])]
    node = onnx.helper.make_node("Concat", ["a", "b"], ["y"], axis=1)
    graph = onnx.helper.make_graph([node], "joined", inputs, [tensor("y", kind, ["n", 5])])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)
    model = Model("tail", OnnxRuntimeBackend(made.SerializeToString(), 1), {})
    a, b = np.ones((1, 2), np.float32), np.zeros((1, 3), np.float32)

    async def both():
        return await asyncio.gather(_run(model, {"a": a, "b": b}), _run(model, {"b": b, "a": a}))

    for ran in asyncio.run(both()):
        assert ran.batch == 2
        assert ran.outputs["y"].tolist() == [[1, 1, 0, 0, 0]]
    model.close()


def test_a_model_of_one_batch_size_joins_none(make_checkpoint, tmp_path):
    from export.parity import parity_images
    from export.write_bundle import export_bundle

    export_bundle(make_checkpoint("none"), tmp_path / "b", images=parity_images(None, 32), batch="static")
    model = Model("tail", OnnxRuntimeBackend((tmp_path / "b" / "server0" / "tail.onnx").read_bytes(), 1), {})
    assert model.batching.max_batch == 1
    shape = model.inputs[0].shape

    async def two():
        return await asyncio.gather(*(_run(model, {"features": np.zeros(shape, np.float32)}) for _ in range(2)))

    assert [ran.batch for ran in asyncio.run(two())] == [1, 1]
    model.close()


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"x": FEATURES["features"]}, "expected tensors"),
        ({"features": FEATURES["features"].astype(np.float64)}, "expected dtype"),
        ({"features": FEATURES["features"][:, :3]}, "expected shape"),
        ({"features": FEATURES["features"] * np.float32(np.inf)}, "not finite"),
    ],
)
def test_what_does_not_fit_never_reaches_a_batch(model, backend, feeds, words):
    async def both():
        return await asyncio.gather(_run(model, feeds), _run(model, FEATURES), return_exceptions=True)

    refused, served = asyncio.run(both())
    assert isinstance(refused, TensorError)
    assert words in str(refused)
    assert served.batch == 2


def test_a_request_cannot_have_all_the_time_there_is(backend, monkeypatch):
    monkeypatch.setattr(cloud.models, "MOST_BATCHES", 3)
    model = Model("tail", backend, {}, Batching(max_batch=2))
    many = np.repeat(FEATURES["features"][:1], 7, 0)
    with pytest.raises(TensorError, match="7 rows in one request; this model takes 6 at most"):
        asyncio.run(_run(model, {"features": many}))
    assert asyncio.run(_run(model, {"features": many[:6]})).rows == 6
    model.close()


def test_more_rows_than_the_library_takes_are_refused(backend):
    backend.max_batch = 1
    model = Model("tail", backend, {}, Batching(max_batch=1))
    with pytest.raises(TensorError, match="2 rows in one request; this model takes 1 at most"):
        asyncio.run(_run(model, FEATURES))
    model.close()
