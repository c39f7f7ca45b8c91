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
    "error.code()": "ErrorCode",
    "flags": "NetworkDefinitionCreationFlag",
    "layer": "ILayer",
    "layer.type": "LayerType",
    "network": "INetworkDefinition",
    "output": "ITensor",
    "output.dtype": "DataType",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "self._engine": "ICudaEngine",
    "self._engine.get_tensor_dtype(name)": "DataType",
    "self._execution": "IExecutionContext",
    "self._runtime": "Runtime",
    "tensor": "ITensor",
}
MODULES = ("library.module", "load_library('tensorrt').module", "module", "self.module", "trt")
NOT_THEIRS = {
    "library", "self",  # ours
    "WANT_OF_MEMORY", "buffer", "failed", "found", "gpu", "library.log", "log", "options", "self.log", "spec",
    # CUDA's
    "self._context", "self._cuda", "self._device", "self._driver", "self._stream", "after", "driver", "mapped", "next",
    "pinned",
    "dict", "feeds", "host", "message", "name", "self._buffers", "self._messages", "self.host", "times", "told",
    "view", "views",  # Python's and numpy's
    "known",  # TensorRT for RTX's alone, whose members are listed
}  # fmt: skip
"""What else a name is taken from, and whatever that gives."""
LOOKED_FOR = {  # behind a look whether they are there
    "ComputeCapability", "num_compute_capabilities", "set_compute_capability", "EXPLICIT_BATCH",
}  # fmt: skip
OVERRIDDEN = {("ILogger", "log"), ("IProfiler", "report_layer_time")}
OURS = ("edge_sdk.engine.build", "edge_sdk.engine.library", "edge_sdk.backends.tensorrt")


def _used():
    """Classes, "" for the module itself, and the names that are taken from them, by a dot or by their text."""
    yield from OVERRIDDEN
    for module in OURS:
        # In the backend base is another class's.
        receivers = {**RECEIVERS, "base": "IProfiler"} if module == OURS[2] else RECEIVERS
        yield from _used_in(Path(import_module(module).__file__).read_text(), receivers)


def _used_in(text, receivers):
    """The same of one module, in which nothing is taken from what is unknown here."""
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {(alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            receiver, name = node.value, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            receiver, asked = node.args[:2]
            name = asked.value if isinstance(asked, ast.Constant) else None
        else:
            continue
        owner = ast.unparse(receiver)
        above, _, last = owner.rpartition(".")
        kind = "" if owner in MODULES else receivers.get(owner, last if above in MODULES else None)
        if kind is not None:
            assert name is not None, f"{ast.unparse(node)}: which name is it?"
            if not name.startswith("__"):
                yield kind, name
        else:
            known = isinstance(receiver, ast.Constant) or _root(receiver) in NOT_THEIRS | imported
            assert known, f"whose is {owner}?"
            assert not owner.startswith(tuple(f"{each}." for each in MODULES)), f"what is {owner}?"


def _root(node):
    """``a`` of ``a.b(c)[0].d``, ``self.a`` of ``self.a.b``."""
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        above = node.func if isinstance(node, ast.Call) else node.value
        if ast.unparse(above) == "self":
            break
        node = above
    return ast.unparse(node)


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(error):\n    return [getattr(error, name)() for name in ('node', 'nod')]", "which name is it"),
        ("def f(library):\n    return hasattr(library.module, name)", "which name is it"),
        ("def f(network):\n    tensors = network.get_output(0)\n    return tensors.location", "whose is tensors"),
        ("def f(network):\n    return network.get_output(0).location", r"whose is network\.get_output\(0\)"),
        ("def f(library):\n    return library.module.TensorIOMode.INPUT.nam", r"what is library\.module\.TensorIOMode"),
    ],
)
def test_a_name_that_cannot_be_looked_up_is_not_passed_over(text, words):
    with pytest.raises(AssertionError, match=words):
        list(_used_in(text, RECEIVERS))


def test_names_are_found_however_they_are_asked_for():
    text = "import re\ndef f(trt, error):\n    re.compile('')\n    trt.A.B = getattr(error, 'c')().d\n    return trt.E"
    with pytest.raises(AssertionError, match=r"whose is getattr\(error, 'c'\)\(\)"):
        list(_used_in(text, RECEIVERS))
    found = set(_used_in(text.replace("().d", ""), RECEIVERS))
    assert found == {("", "A"), ("A", "B"), ("ParserError", "c"), ("", "E")}


def test_rtx_has_every_name_too(rtx):
    for kind, name in _used():
        owner = getattr(rtx.module, kind) if kind else rtx.module
        assert hasattr(owner, name) or name in LOOKED_FOR, f"{kind}.{name}"
