"""Every name of TensorRT's that we use, against those that the real bindings have.

The lists are of NVIDIA's Python bindings of TensorRT 10.3 (JetPack 6) and 11.4 (JetPack 7.2), imported and listed
without its libraries; they show names, not behaviour.
"""

import ast
import json
from importlib import import_module
from pathlib import Path

import pytest

import edge_sdk.backends.tensorrt

HERE = Path(__file__).parent
RECEIVERS = {
    "base": "ILogger",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "error": "ParserError",
    "flags": "NetworkDefinitionCreationFlag",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "self._engine": "ICudaEngine",
    "self._execution": "IExecutionContext",
    "output": "ITensor",
    "self._runtime": "Runtime",
    "tensor": "ITensor",
}
MODULES = ("library.module", "load_library('tensorrt').module", "module", "self.module", "trt")
LOOKED_FOR = {  # behind a look whether they are there
    "ComputeCapability", "num_compute_capabilities", "set_compute_capability", "EXPLICIT_BATCH",
}  # fmt: skip
OVERRIDDEN = {("ILogger", "log"), ("IProfiler", "report_layer_time")}
OURS = ("edge_sdk.engine.build", "edge_sdk.engine.library", "edge_sdk.backends.tensorrt")


def _used():
    """Classes, "" for the module itself, and the names that are taken from them, by a dot or by their text."""
    yield from OVERRIDDEN
    for module in OURS:
        for node in ast.walk(ast.parse(Path(import_module(module).__file__).read_text())):
            name = receiver = None
            if isinstance(node, ast.Attribute):
                receiver, name = node.value, node.attr
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                receiver, asked = node.args[:2]
                name = asked.value if isinstance(asked, ast.Constant) else None
            if name is None or name.startswith("__"):
                continue
            owner = ast.unparse(receiver)
            if owner in MODULES:
                yield "", name
            elif owner in RECEIVERS and not (owner == "base" and module == OURS[2]):  # there it is IProfiler
                yield RECEIVERS[owner], name
            elif owner.rpartition(".")[0] in MODULES:
                yield owner.rpartition(".")[2], name


@pytest.mark.parametrize("version", ["10_3", "11_4"])
def test_both_generations_have_every_name(version):
    api = json.loads((HERE / f"tensorrt_{version}.json").read_text())
    used = set(_used())
    assert {kind for kind, _ in used} >= {*RECEIVERS.values(), "", "IProfiler", "MemoryPoolType", "TensorIOMode"}
    missing = [f"{kind}.{name}" for kind, name in used if name not in api[kind] and name not in LOOKED_FOR]
    assert not missing


@pytest.mark.parametrize("version", ["10_3", "11_4"])
def test_every_dtype_that_a_tensor_may_have_is_one_of_theirs(version):
    api = json.loads((HERE / f"tensorrt_{version}.json").read_text())
    assert set(edge_sdk.backends.tensorrt._TYPES) <= set(api["DataType"])


def test_rtx_has_every_name_too(rtx):
    for kind, name in _used():
        owner = getattr(rtx.module, kind) if kind else rtx.module
        assert hasattr(owner, name) or name in LOOKED_FOR, f"{kind}.{name}"
