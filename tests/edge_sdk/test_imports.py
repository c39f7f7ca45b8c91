"""The device install must work without the workstation's and the server's packages."""

import pkgutil
import subprocess
import sys

import pytest

import edge_sdk

HEAVY = (
    "torch", "onnx", "onnxruntime", "tensorrt", "pycuda", "ray", "starlette", "uvicorn", "safetensors", "opentelemetry",
    "grpc", "prometheus_client", "pythonjsonlogger", "jinja2", "matplotlib",
)  # fmt: skip
BLOCK = f"import sys\nfor name in {HEAVY!r} + ('rich',): sys.modules[name] = None\n"
MODULES = sorted(m.name for m in pkgutil.walk_packages(edge_sdk.__path__, "edge_sdk.") if "__main__" not in m.name)


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_every_module_imports_with_the_heavy_packages_blocked():
    assert len(MODULES) > 20
    done = _python(BLOCK + "import importlib\n" + "".join(f"importlib.import_module({m!r})\n" for m in MODULES))
    assert done.returncode == 0, done.stderr


def test_the_package_alone_imports_nothing_heavy():
    done = _python(
        f"import sys, edge_sdk\nprint([n for n in {(*HEAVY, 'numpy', 'requests', 'rich')!r} if n in sys.modules])"
    )
    assert done.stdout == "[]\n"


def test_the_public_names_are_those_that_are_exported():
    assert edge_sdk.__all__ == sorted(edge_sdk.__all__)
    for name in edge_sdk.__all__:
        assert getattr(edge_sdk, name) is not None
    with pytest.raises(AttributeError):
        edge_sdk.nothing  # noqa: B018


COMMANDS = ["train", "audit", "export", "inspect", "build", "serve", "run", "profile", "measure", "doctor"]


def test_every_help_works_with_the_heavy_packages_blocked():
    for command in [[], *([c] for c in COMMANDS)]:
        code = (
            BLOCK + f"import sys\nsys.argv = {['edgesdk', *command, '--help']!r}\nfrom edge_sdk.cli import main\nmain()"
        )
        done = _python(code)
        assert done.returncode == 0, done.stderr
        assert "Usage: edgesdk" in done.stdout
        assert "--help" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["export", "--defense", "siftfunnel"], "export"),
        (["train", "--defense", "none", "--data", "x", "--out", "y"], "export"),
        (["serve", "b/server0"], "cloud"),
    ],
)
def test_a_missing_extra_is_named(arguments, extra):
    # As an import of something that is not installed fails: with ModuleNotFoundError that has a name.
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = {["edgesdk", *arguments]!r}
from edge_sdk.cli import main
main()
"""
    done = _python(code)
    assert done.returncode == 1
    assert f"pip install 'edgesdk[{extra}]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
