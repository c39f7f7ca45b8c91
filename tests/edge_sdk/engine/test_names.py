"""Every name of TensorRT's that we use, against those that the real bindings have.

The lists are of NVIDIA's Python bindings of TensorRT 10.3 (JetPack 6) and 11.4 (JetPack 7.2), imported and listed
without its libraries; they show names, not behaviour.
"""

import ast
import json
from pathlib import Path

import pytest

import edge_sdk.backends.tensorrt
import edge_sdk.engine.build

HERE = Path(__file__).parent
RECEIVERS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "error": "ParserError",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "self._engine": "ICudaEngine",
    "self._execution": "IExecutionContext",
    "self._runtime": "Runtime",
}
RTX_ALONE = {"num_compute_capabilities", "set_compute_capability"}  # behind a look for ComputeCapability


def _used():
    for module in (edge_sdk.engine.build, edge_sdk.backends.tensorrt):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in RECEIVERS:
                yield RECEIVERS[ast.unparse(node.value)], node.attr


@pytest.mark.parametrize("version", ["10_3", "11_4"])
def test_both_generations_have_every_name(version):
    api = json.loads((HERE / f"tensorrt_{version}.json").read_text())
    used = set(_used())
    assert {kind for kind, _ in used} == set(RECEIVERS.values())
    missing = [f"{kind}.{name}" for kind, name in used if name not in api[kind] and name not in RTX_ALONE]
    assert not missing


def test_flags_are_used_where_they_exist():
    old, new = (json.loads((HERE / f"tensorrt_{version}.json").read_text()) for version in ("10_3", "11_4"))
    flags = "NetworkDefinitionCreationFlag"
    assert "STRONGLY_TYPED" in old[flags]  # so that the flags below are never touched on either
    assert "STRONGLY_TYPED" in new[flags]
    assert "FP16" not in new["BuilderFlag"]
    assert "EXPLICIT_BATCH" not in new[flags]
    assert "TF32" in new["BuilderFlag"]


def test_rtx_has_every_name_too(rtx):
    for kind, name in _used():
        assert hasattr(getattr(rtx.module, kind), name), f"{kind}.{name}"
