import json

import pytest
import torch
from safetensors.torch import save_file

from edge_sdk.errors import DataError
from export.checkpoint import FORMAT, load_checkpoint, load_tensors, rounded_to_int8


def test_a_checkpoint_survives_the_disk(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint("siftfunnel", funnel_pool=False, beta=1.5)
    checkpoint.save(tmp_path / "a" / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "a" / "model.safetensors")
    assert loaded.config == checkpoint.config
    assert loaded.feature_ranges == checkpoint.feature_ranges
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.build()(x), checkpoint.build()(x))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["model.safetensors"]


def test_weights_can_be_kept_as_int8(make_checkpoint, tmp_path):
    """What is loaded is what was said to come back, and near what was trained; the others are as they were."""
    checkpoint = make_checkpoint("none")
    names = [name for name, tensor in checkpoint.weights.items() if name.startswith("tails.") and tensor.dim() > 1]
    zero = torch.zeros_like(checkpoint.weights[names[0]][0])
    checkpoint.weights[names[0]][0] = zero  # a channel without a scale
    checkpoint.save(tmp_path / "whole.safetensors")
    checkpoint.save(tmp_path / "small.safetensors", names)
    loaded = load_checkpoint(tmp_path / "small.safetensors")
    assert loaded.weights.keys() == checkpoint.weights.keys()
    for name, tensor in checkpoint.weights.items():
        if name in names:
            assert torch.equal(loaded.weights[name], rounded_to_int8(tensor))
            most = tensor.flatten(1).abs().amax(1)
            apart = (loaded.weights[name] - tensor).flatten(1).abs().amax(1)
            assert (apart <= most / 254 * 1.01).all()
        else:
            assert torch.equal(loaded.weights[name], tensor)
    assert torch.equal(loaded.weights[names[0]][0], zero)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "whole")]
    assert sizes[0] < 0.5 * sizes[1]
    loaded.build()


def _save(path, record, tensors=None, form=FORMAT):
    save_file(tensors or {"x": torch.zeros(1)}, path, metadata={"format": form, "record": json.dumps(record)})


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: None, "no such checkpoint"),
        (lambda p: p.write_bytes(b""), "damaged or no safetensors file"),
        (lambda p: p.write_bytes(b"\x80\x04K\x01."), "damaged or no safetensors file"),
        (lambda p: save_file({"x": torch.zeros(1)}, p), "not an edgesdk-checkpoint-1 file"),
        (lambda p: _save(p, {}, form="edgesdk-checkpoint-9"), "format: edgesdk-checkpoint-9"),
        (lambda p: _save(p, {}), "not a model checkpoint"),
        (lambda p: _save(p, {}, {"x": torch.zeros(1, dtype=torch.int8)}), "not a model checkpoint"),
        (lambda p: _save(p, {"defense": "magic", "config": {}}), "no defense 'magic'"),
        (lambda p: _save(p, {"defense": "none", "config": {"no": 1}}), "no setting no"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, write, words):
    path = tmp_path / "model.safetensors"
    write(path)
    with pytest.raises(DataError, match=words):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(make_checkpoint, tmp_path):
    path = tmp_path / "model.safetensors"
    make_checkpoint("none").save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(path)


def test_weights_of_another_model_are_refused(make_checkpoint, tmp_path):
    path = tmp_path / "model.safetensors"
    make_checkpoint("none").save(path)
    tensors, record = load_tensors(path)
    _save(path, {**record, "config": {**record["config"], "num_classes": 5}}, tensors)
    with pytest.raises(DataError, match="weights do not fit none"):
        load_checkpoint(path).build()
    with pytest.raises(DataError, match="the checkpoint is none"):
        load_checkpoint(path).require("siftfunnel", "cnn")
