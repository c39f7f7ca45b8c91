import numpy as np
import onnx
import pytest
import torch

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import open_party
from edge_sdk.errors import BackendError, BundleError, ConfigError
from export.cost import count_cost
from export.onnx import OPSET, _state_kernel_shapes, to_onnx
from export.parity import parity_images
from export.wire import Wire
from export.write_bundle import export_bundle

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def _chain(bundle, images):
    with OnnxRuntimeBackend((bundle / "edge" / "encoder.onnx").read_bytes()) as encoder:
        sent = encoder.run({"image": images})["features"]
    with OnnxRuntimeBackend((bundle / "server0" / "tail.onnx").read_bytes()) as tail:
        return sent, tail.run({"features": sent})["logits"]


def _expected(checkpoint, images):
    with torch.no_grad():
        return checkpoint.build()(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).numpy()


@pytest.mark.parametrize("batch", [1, 5])
def test_the_exported_parts_compute_what_torch_computes(bundle, make_checkpoint, batch):
    _, logits = _chain(bundle, IMAGES[:batch])
    np.testing.assert_allclose(logits, _expected(make_checkpoint("siftfunnel"), IMAGES[:batch]), atol=1e-4)


@pytest.mark.parametrize(("wire", "dtype", "tolerance"), [("float16", np.float16, 1e-4), ("uint8", np.uint8, 1e-3)])
def test_narrower_wires_lose_little(make_checkpoint, tmp_path, wire, dtype, tolerance):
    checkpoint = make_checkpoint("none")
    export_bundle(checkpoint, tmp_path / "b", images=parity_images(None, 32), wire_dtype=wire)
    sent, logits = _chain(tmp_path / "b", IMAGES)
    assert sent.dtype == dtype
    manifest = open_party(tmp_path / "b" / "edge").manifest
    assert manifest.wire_bytes == sent[0].nbytes
    expected = _expected(checkpoint, IMAGES)
    assert np.abs(logits - expected).max() < tolerance * max(1, np.abs(expected).max())


def test_a_static_export_takes_batch_one_alone(make_checkpoint, tmp_path):
    images = parity_images(None, 16)
    export_bundle(make_checkpoint("none"), tmp_path / "b", images=images, batch="static", image_size=16)
    spec = open_party(tmp_path / "b" / "edge").manifest.parts[0].inputs[0]
    assert spec.shape == (1, 16, 16, 3)
    assert _chain(tmp_path / "b", images.pixels[:1])[1].shape == (1, 10)


def test_the_manifest_records_where_it_is_from(bundle):
    manifest = open_party(bundle / "edge").manifest
    assert manifest.provenance["paper"] == "SiftFunnel, arXiv 2501.00824"
    assert manifest.provenance["export"]["opset"] == OPSET
    parity = manifest.provenance["parity"]["fp32"]
    assert parity["num_images"] == 64
    assert parity["images"] == "uniform noise, seed 0"
    assert 0 < max(parity["max_abs_difference"].values()) < 1e-3 == parity["limit"]
    assert manifest.accuracy["test"] == 0.1
    assert manifest.wire_bytes == 12 * 8 * 8 * 4


def test_the_onnx_files_are_single_valid_and_tell_nothing_of_the_machine(bundle):
    for path in (*bundle.glob("*/*.onnx"),):
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}
        assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
        assert b"site-packages" not in path.read_bytes()


def test_the_same_checkpoint_gives_the_same_bundle(bundle, make_checkpoint, tmp_path):
    images = parity_images(None, 32)
    precisions = ("fp16", "int8")
    export_bundle(
        make_checkpoint("siftfunnel"), tmp_path / "b", images=images, precisions=precisions, calibration=images.pixels
    )
    for party in ("edge", "server0"):
        for path in (bundle / party).iterdir():
            assert path.read_bytes() == (tmp_path / "b" / party / path.name).read_bytes(), path


def test_real_images_are_recorded(image_folder):
    images = parity_images(str(image_folder), 32)
    assert images.pixels.shape[1:] == (32, 32, 3)
    assert images.source == f"{len(images.pixels)} real images of test"


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint("none")
    images = parity_images(None, 32)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(BundleError, match="exists already"):
        export_bundle(checkpoint, tmp_path / "there", images=images)
    with pytest.raises(ConfigError, match="got 40"):
        export_bundle(checkpoint, tmp_path / "b", images=images, image_size=40)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_a_parity_worse_than_the_limit_is_refused(make_checkpoint, tmp_path, monkeypatch):
    import export.write_bundle

    monkeypatch.setattr(export.write_bundle, "PARITY_LIMIT", 1e-12)
    with pytest.raises(BackendError, match=r"differs from torch by .* nothing was written"):
        export_bundle(make_checkpoint("none"), tmp_path / "b", images=parity_images(None, 32))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_nan_is_refused(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint("none")
    checkpoint.weights["edge.1.0.weight"][0, 0, 0, 0] = float("nan")
    for wire in ("float32", "float16"):
        with pytest.raises(BackendError, match="differs from torch by nan"):
            export_bundle(checkpoint, tmp_path / "b", images=parity_images(None, 32), wire_dtype=wire)
    assert list(tmp_path.iterdir()) == []


def test_another_image_size_says_nothing_of_accuracy(make_checkpoint, tmp_path):
    export_bundle(make_checkpoint("none"), tmp_path / "b", images=parity_images(None, 48), image_size=48)
    assert open_party(tmp_path / "b" / "edge").manifest.accuracy == {}


def test_costs_of_a_convolution_and_a_product_by_hand():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(5 * 16, 7))
    cost = count_cost(to_onnx(model.eval(), (torch.zeros(2, 3, 4, 4),), ["x"], ["y"]))
    assert cost.flops == 2 * (5 * 16 * 3 * 9) + 2 * 80 * 7
    assert cost.num_params == 5 * 27 + 5 + 80 * 7 + 7
    assert cost.weight_bytes >= 4 * cost.num_params


def test_convolutions_state_their_kernels_shape_whatever_the_exporter_does():
    model = onnx.load_from_string(
        to_onnx(torch.nn.Conv2d(3, 5, (3, 1)).eval(), (torch.zeros(2, 3, 4, 4),), ["x"], ["y"])
    )
    (node,) = (node for node in model.graph.node if node.op_type == "Conv")
    stated = [attribute for attribute in node.attribute if attribute.name == "kernel_shape"]
    for attribute in stated:
        node.attribute.remove(attribute)
    _state_kernel_shapes(model)
    _state_kernel_shapes(model)
    assert [list(a.ints) for a in node.attribute if a.name == "kernel_shape"] == [[3, 1]]
    assert [list(attribute.ints) for attribute in stated] == [[3, 1]]


def test_a_product_that_nothing_counts_is_no_zero():
    model = to_onnx(torch.nn.LSTM(4, 8).eval(), (torch.zeros(2, 3, 4),), ["x"], ["y"])
    with pytest.raises(BackendError, match="the cost of this LSTM cannot be counted"):
        count_cost(model)


def test_a_module_in_training_mode_is_not_exported():
    with pytest.raises(ValueError, match="training mode"):
        to_onnx(torch.nn.Dropout(), (torch.zeros(2, 3),), ["x"], ["y"])


def test_uint8_packing_rounds_to_the_nearest_step_and_clips():
    wire = Wire("uint8", -1.0, 1.55)  # steps of 0.01
    z = torch.tensor([-5.0, -1.0, -0.994, 0.0, 1.55, 9.0])
    sent = wire.pack(z)
    assert sent.tolist() == [0, 0, 1, 100, 255, 255]
    torch.testing.assert_close(wire.unpack(sent)[1:5], torch.tensor([-1.0, -0.99, 0.0, 1.55]))


def test_an_export_leaves_nothing_beside_its_bundle(bundle):
    assert [path.name for path in bundle.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("standardize", [False, True])
def test_the_manifest_says_how_the_graph_normalises(make_checkpoint, tmp_path, standardize):
    export_bundle(
        make_checkpoint("siftfunnel", standardize=standardize), tmp_path / "b", images=parity_images(None, 32)
    )
    said = open_party(tmp_path / "b" / "edge").manifest.preprocessing
    assert ("mean" in said) == ("std" in said) == (not standardize)
    assert ("variance of the image" in said["in_graph"]) == standardize
