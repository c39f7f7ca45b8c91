"""tools/check_device_install.py: what is compared of two places, of which one is this interpreter."""

import importlib
import shutil
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import open_party
from edge_sdk.errors import ConfigError
from export.parity import parity_images
from export.write_bundle import export_bundle

from ..conftest import ROOT


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("check_device_install")


@pytest.fixture
def photographs(tmp_path):
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (40, 32, 3), np.uint8)).save(path)
    return paths


def test_features_answers_and_layers_are_compared(check, bundle, server, photographs, tmp_path, capsys):
    shared = tmp_path / "shared"
    edge = open_party(shutil.copytree(bundle / "edge", shared / "edge"))
    pixels = check.decoded(edge, photographs)
    assert (pixels.shape, pixels.dtype) == ((2, 32, 32, 3), np.uint8)
    np.save(shared / check.PIXELS, pixels)
    run = ["run", "edge", *map(str, photographs), "--server", server, "--top", "1000", "--json"]
    computed = check.compute(partial(check._python, [sys.executable], shared), run, shared)

    with OnnxRuntimeBackend(edge.onnx(edge.manifest.parts[0])) as encoder:
        expected = encoder.run({"image": pixels})["features"]
    np.testing.assert_allclose(computed.features["features"], expected, atol=1e-5)
    assert len(computed.answers) == 2
    assert check.agree("here", computed, computed)
    assert "of 2 images features differ by 0.0e+00 at most" in capsys.readouterr().out

    for wrong in (2e-4, np.nan):  # one number of one feature, too little for an answer of six digits to tell
        features = computed.features["features"].copy()
        features[1, 0, 0, 0] += wrong
        assert not check.agree("there", computed, computed._replace(features={"features": features}))
    first, *others = computed.answers
    classes = [{**each, "probability": each["probability"] + 2e-4} for each in first["classes"]]
    assert not check.agree("there", computed, computed._replace(answers=[{**first, "classes": classes}, *others]))
    encoder = {**computed.report["encoder"], "layer_ms": {}}
    assert not check.agree("there", computed, computed._replace(report={**computed.report, "encoder": encoder}))


@pytest.mark.parametrize(
    ("defense", "wire", "words"),
    [("gaussian", "float32", "take a bundle without"), ("none", "float16", "travel as FP16")],
)
def test_what_cannot_be_compared_is_refused(check, make_checkpoint, photographs, tmp_path, defense, wire, words):
    export_bundle(make_checkpoint(defense), tmp_path / "b", images=parity_images(None, 32), wire_dtype=wire)
    with pytest.raises(ConfigError, match=words):
        check.decoded(open_party(tmp_path / "b" / "edge"), photographs)
