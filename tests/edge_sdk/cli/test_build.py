"""What ``edgesdk build`` says of engines that TensorRT for RTX builds here."""

import pytest

from edge_sdk.bundle import open_party
from edge_sdk.cli.build import FIRST_LAYERS
from edge_sdk.engine.build import EngineOptions
from edge_sdk.engine.process import build_apart
from export.parity import parity_images
from export.write_bundle import export_bundle

from ...conftest import edgesdk_here


@pytest.fixture(scope="module")
def static_bundle(make_checkpoint, tmp_path_factory):
    """Exported for batch 1 alone."""
    out = tmp_path_factory.mktemp("bundle") / "b"
    export_bundle(make_checkpoint("none"), out, images=parity_images(None, 32), batch="static")
    return out


def _build(party, out, *options):
    done = edgesdk_here("build", party, "--target", "sm_89", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _batch(table):
    header, row = (line for line in table.splitlines() if line[0] in "┃│")
    cells = [[cell.strip() for cell in line[1:-1].replace("┃", "│").split("│")] for line in (header, row)]
    return dict(zip(*cells, strict=True))["batch"]


def test_the_batch_is_what_the_engine_takes(rtx, bundle, static_bundle, tmp_path):
    assert _batch(_build(static_bundle / "server0", tmp_path)) == "1"
    assert _batch(_build(bundle / "server0", tmp_path)) == "1 to 8"
    assert _batch(_build(bundle / "server0", tmp_path, "--max-batch", "2")) == "1 to 2"
    assert _batch(_build(bundle / "edge", tmp_path)) == "1"


@pytest.mark.parametrize("party", ["edge", "server0"])
def test_the_layers_are_named(rtx, static_bundle, bundle, party, tmp_path):
    for folder in (static_bundle, bundle):
        opened = open_party(folder / party)
        part = opened.manifest.parts[0]
        layers = build_apart(opened.onnx(part), EngineOptions(targets=("sm_89",)), "tensorrt_rtx").layers
        names = [layer.name for layer in layers]
        said, every = _build(folder / party, tmp_path), _build(folder / party, tmp_path, "--layers")
        assert f"before it fuses them: {', '.join(names[:FIRST_LAYERS])}" in said
        left = len(names) - FIRST_LAYERS
        assert ("--layers prints all" in said) == (left > 0) == (f" and {left} more" in said)
        assert all(layer.name in every and layer.kind in every for layer in layers)
