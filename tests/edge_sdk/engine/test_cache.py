import msgspec
import pytest

from edge_sdk.bundle import open_party
from edge_sdk.engine.build import EngineOptions
from edge_sdk.engine.cache import cached_engine, engine_key
from edge_sdk.engine.gpu import Gpu
from edge_sdk.errors import DataError, EdgeSDKError

ORIN = Gpu(name="Orin", compute_capability="8.7", num_sms=8, integrated=True)
KEY = {"onnx": b"model", "options": EngineOptions(), "library": "tensorrt", "version": "10.3.0.30", "gpu": ORIN}


@pytest.mark.parametrize(
    "change",
    [
        {"onnx": b"other"},
        {"version": "10.3.0.31"},
        {"gpu": Gpu(name="Orin", compute_capability="8.7", num_sms=4, integrated=True)},  # another power mode
        {"options": EngineOptions(max_batch=2)},
        {"options": EngineOptions(precision="fp16")},
    ],
)
def test_whatever_an_engine_depends_on_is_in_its_key(change):
    assert engine_key(**KEY) == engine_key(**KEY)
    assert engine_key(**{**KEY, **change}) != engine_key(**KEY)


def test_an_engine_is_built_once(rtx, bundle, tmp_path):
    opened = open_party(bundle / "edge")
    onnx, options = opened.onnx(opened.manifest.parts[0]), EngineOptions(targets=("sm_89",))

    def engine():
        return cached_engine("encoder", onnx, options, "tensorrt_rtx", rtx.version, None, tmp_path / "engines")

    first, second = engine(), engine()
    assert (first.found, second.found) == (False, True)
    assert second.content == first.content == first.path.read_bytes()
    assert second.record == first.record
    assert first.path.name.startswith("encoder-")
    assert len(list((tmp_path / "engines").iterdir())) == 2  # nothing half-written stays
    more = msgspec.structs.replace(options, workspace_bytes=1 << 30)
    found = [
        cached_engine("encoder", onnx, each, "tensorrt_rtx", rtx.version, None, tmp_path / "engines").found
        for each in (more, more, options)
    ]
    assert found == [False, True, True]  # who asks for more memory gets what is built with it
    second = engine()
    for damaged, content in ((first.path, first.content[:-1]), (first.path.with_suffix(".json"), b"{")):
        damaged.write_bytes(content)
        again = engine()
        assert not again.found
        assert again.path.read_bytes() == again.content
        assert engine().found


def test_an_engine_that_was_built_with_less_memory_is_the_same_engine():
    assert engine_key(**{**KEY, "options": EngineOptions(workspace_bytes=1 << 20)}) == engine_key(**KEY)


def test_a_build_that_fails_leaves_no_folder(rtx, tmp_path):
    with pytest.raises(EdgeSDKError):
        cached_engine("x", b"none", EngineOptions(), "tensorrt_rtx", rtx.version, None, tmp_path / "engines")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_named(rtx, bundle, tmp_path):
    (tmp_path / "file").write_text("")
    opened = open_party(bundle / "edge")
    with pytest.raises(DataError, match="cannot be kept there"):
        cached_engine(
            "encoder", opened.onnx(opened.manifest.parts[0]), EngineOptions(targets=("sm_89",)), "tensorrt_rtx",
            rtx.version, None, tmp_path / "file",
        )  # fmt: skip
