"""A served model without HTTP: where a request runs, and that one waits for the other."""

import asyncio
import threading
import time

import numpy as np
import pytest
from starlette.requests import Request

import cloud.app
import cloud.models
from cloud.models import Model
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend

FEATURES = {"features": np.random.default_rng(1).random((2, 12, 8, 8), np.float32)}


class _Watched(OnnxRuntimeBackend):
    """Notes the thread of each run, and whether two ran at once."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model, 1)
        self.threads: list[str] = []
        self.pause = 0.0
        self.inside = self.most_inside = 0

    def run(self, feeds):
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.threads.append(threading.current_thread().name)
        time.sleep(self.pause)
        try:
            return super().run(feeds)
        finally:
            self.inside -= 1


@pytest.fixture
def backend(bundle):
    return _Watched((bundle / "server0" / "tail.onnx").read_bytes())


@pytest.fixture
def model(backend):
    model = Model("tail", backend, {})
    asyncio.run(model.infer(FEATURES))  # the first run's time, which allocates, is not the model's
    backend.threads.clear()
    yield model
    model.close()


def test_a_request_runs_in_the_models_thread_unless_its_client_is_alone(model, backend):
    asyncio.run(model.infer(FEATURES))
    asyncio.run(model.infer(FEATURES, alone=True))
    assert backend.threads == ["model-tail_0", "MainThread"]


def test_a_long_run_never_blocks_the_event_loop(model, backend, monkeypatch):
    monkeypatch.setattr(cloud.models, "INLINE_SECONDS", 1e-7)
    asyncio.run(model.infer(FEATURES, alone=True))
    assert backend.threads == ["model-tail_0"]


def test_a_lone_request_waits_for_the_one_that_runs(model, backend):
    async def both():
        backend.pause = 0.2
        first = asyncio.ensure_future(model.infer(FEATURES))
        await asyncio.sleep(0.05)
        return await asyncio.gather(first, model.infer(FEATURES, alone=True))

    first, second = asyncio.run(both())
    assert backend.most_inside == 1
    assert backend.threads == ["model-tail_0"] * 2
    assert second.queue_us > 50_000 > first.queue_us
    np.testing.assert_array_equal(first.outputs["logits"], second.outputs["logits"])


def test_a_client_is_alone_once_no_other_has_asked_for_a_while(monkeypatch):
    clock = 100.0
    monkeypatch.setattr(cloud.app.time, "monotonic", lambda: clock)
    clients = cloud.app._Clients()

    def alone(*client):
        return clients.alone(Request({"type": "http", "client": client or None}))

    assert not alone("a", 1)
    clock += 0.9
    assert not alone("a", 1)
    clock += 0.2
    assert alone("a", 1)
    assert not alone("a", 2)
    clock += 0.5
    assert not alone("a", 1)
    clock += 2
    assert alone("a", 1)
    assert not alone()
    clock += 2
    assert not alone()
