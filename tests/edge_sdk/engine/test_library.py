"""What TensorRT says, and what is made of packages that are not whole."""

import sys

import pytest

from edge_sdk.engine.gpu import cuda
from edge_sdk.engine.library import MessageLog, load_library
from edge_sdk.errors import BackendError, DeviceError, MissingExtra


@pytest.mark.parametrize(
    "message",
    [
        "[defaultAllocator.cpp] Cuda Runtime (out of memory)",
        "Could not find any implementation for node {ForeignNode[x]} due to insufficient workspace.",
        "Requested amount of GPU memory (1048576 bytes) could not be allocated.",
        "NvMapMemAllocInternalTagged: 1075072515 error 12",
        "CUDA error OutOfMemory",
    ],
)
def test_a_want_of_memory_is_known_by_its_words(message):
    log = MessageLog()
    log.add(message, is_error=True)
    assert log.wants_memory


def test_a_warning_alone_is_no_want_of_memory():
    """TensorRT skips tactics in builds that succeed as well."""
    log = MessageLog()
    log.add("Skipping tactic 3 due to insufficient memory on requested size of 1.", is_error=False)
    log.add("Unsupported operator", is_error=True)
    assert not log.wants_memory
    log.add("Could not find any implementation for node {x}.", is_error=True)
    assert log.wants_memory
    assert log.text().count("Skipping") == 1
    log.clear()
    assert not log.text()


def _package(folder, name, content, monkeypatch):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(content)
    (folder / name / "driver.py").write_text(content)
    monkeypatch.syspath_prepend(folder)
    for each in [each for each in sys.modules if each.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, each)


def test_a_damaged_pycuda_is_not_called_missing(tmp_path, monkeypatch):
    _package(tmp_path, "pycuda", "", monkeypatch)
    (tmp_path / "pycuda" / "driver.py").write_text("import pycuda._driver")
    with pytest.raises(DeviceError, match=r"damaged.*pycuda\._driver.*--force-reinstall"):
        cuda()


def test_a_damaged_tensorrt_is_not_called_missing(tmp_path, monkeypatch):
    load_library.cache_clear()
    _package(tmp_path, "tensorrt", "import tensorrt_libraries_that_are_not_there", monkeypatch)
    with pytest.raises(BackendError, match="is installed and cannot be imported: No module named"):
        load_library("tensorrt")
    load_library.cache_clear()


def test_what_is_not_installed_is_missing(monkeypatch):
    load_library.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtra, match="TensorRT is not installed"):
        load_library("tensorrt")
    load_library.cache_clear()
