"""What tools/fuzz_server.py sends: as many requests as are asked for, the same for the same seed."""

import importlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from ..conftest import ROOT

COUNT = 1500


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module


@pytest.fixture
def right(tool, tmp_path):
    return tool("right_request").Right(tool("bench_models").tiny(tmp_path))


def test_over_http(tool, right):
    mutators = [tool("wrong_http").Mutator(right, 5) for _ in range(2)]
    # In turns: what one changes must not be what the other begins with.
    pairs = [[mutator.requests() for mutator in mutators] for _ in range(COUNT)]
    assert all(first == second for first, second in pairs)
    assert {len(first) for first, _ in pairs} == {1, 2, 8, 40}  # sent before the first is answered
    requests = {request for first, _ in pairs for request in first}
    assert len(requests) > COUNT / 2
    targets = [request.split(b" ")[1] for request in requests]
    for odd in (b"%0A", b"%00", b"%2F", b"//", b"/v2/repository/models/tail/"):
        assert any(odd in target for target in targets), odd
    assert max(map(len, targets)) > 9000


def test_over_grpc(tmp_path):
    """In a process of its own: one cannot hold both our service definition and that of Triton's client."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(_over_grpc, tmp_path).result()


def _over_grpc(folder):
    sys.path.insert(0, str(ROOT / "tools"))
    from google.protobuf.message import DecodeError

    from cloud.protobuf.open_inference_pb2 import ModelInferRequest

    right = importlib.import_module("right_request").Right(importlib.import_module("bench_models").tiny(folder))
    mutators = [importlib.import_module("wrong_grpc").MessageMutator(right, 5) for _ in range(2)]
    pairs = [[mutator.call() for mutator in mutators] for _ in range(COUNT)]
    assert all(path == again for (path, _), (again, _) in pairs)
    asked = [content for (path, content), _ in pairs if path == "/inference.GRPCInferenceService/ModelInfer"]
    assert len({path for (path, _), _ in pairs}) > 10

    def decodes(content: bytes) -> bool:
        try:
            ModelInferRequest.FromString(content)
        except DecodeError:
            return False
        return True

    assert len(asked) * 0.1 < sum(map(decodes, asked)) < len(asked) * 0.9
