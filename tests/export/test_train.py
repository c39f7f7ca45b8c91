import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from edge_sdk.errors import ConfigError, DataError, DeviceError
from export.augment import augment, cut_mix
from export.checkpoint import load_checkpoint, load_tensors, save_tensors
from export.data import load_splits
from export.recipes import recipe_config
from export.train import choose_device, evaluate, train

from ..conftest import EDGESDK, assert_one_line_error, edgesdk, wait_until

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 64, "image_size": 16, "learning_rate": 1e-3, "precision": "float32"}


@pytest.fixture(scope="module")
def splits(image_folder):
    return load_splits(str(image_folder), 16)


def _config(splits, defense="siftfunnel", **changes):
    return recipe_config("zoo", defense, {"num_classes": len(splits.class_names)}, {**SHORT, **changes})


@pytest.mark.parametrize(("defense", "precision"), [("siftfunnel", "float32"), ("none", "bfloat16")])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(splits, tmp_path, defense, precision):
    config = _config(splits, defense, precision=precision)
    whole = train(config, splits, tmp_path / "whole", device=CPU)

    class Stopped(Exception):
        pass

    def stop(metrics):
        raise Stopped

    with pytest.raises(Stopped):
        train(config, splits, tmp_path / "parts", device=CPU, report=stop)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    resumed = train(config, splits, tmp_path / "parts", device=CPU, resume=True)
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, resumed.weights[name]), name
    lines = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    for a, b in zip(*lines, strict=True):
        a, b = json.loads(a), json.loads(b)
        del a["seconds"], b["seconds"]
        assert a == b


def test_the_papers_schedule_resumes_as_well(splits, tmp_path):
    changes = {**SHORT, "learning_rate": 0.01}
    config = recipe_config("siftfunnel-paper", "none", {"num_classes": len(splits.class_names)}, changes)
    whole = train(config, splits, tmp_path / "whole", device=CPU)
    with pytest.raises(KeyboardInterrupt):
        train(config, splits, tmp_path / "parts", device=CPU, report=_interrupt)
    resumed = train(config, splits, tmp_path / "parts", device=CPU, resume=True)
    assert all(torch.equal(whole.weights[name], tensor) for name, tensor in resumed.weights.items())


def _interrupt(metrics):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def teacher(splits, tmp_path_factory):
    return train(_config(splits, "none", epochs=1), splits, tmp_path_factory.mktemp("teacher"), device=CPU)


def test_a_student_learns_its_teachers_answers(splits, teacher, tmp_path):
    """Taught by nothing else, it comes to agree with it more than the labels would have it."""
    several = {"epochs": 6, "cutmix": 0.0}
    taught = train(
        _config(splits, "none", distillation=1.0, **several), splits, tmp_path / "taught", device=CPU, teacher=teacher
    )
    untaught = train(_config(splits, "none", **several), splits, tmp_path / "untaught", device=CPU)
    assert taught.training["teacher"] == f"none {teacher.weights_sha256[:16]}"
    images = torch.from_numpy(splits.train.pixels).permute(0, 3, 1, 2).float() / 255
    answers = [checkpoint.build()(images).softmax(1) for checkpoint in (teacher, taught, untaught)]
    near, far = ((answers[0] - each).abs().sum(1).mean().item() for each in answers[1:])
    assert near < 0.7 * far


def test_a_taught_run_resumes_with_its_teacher_alone(splits, teacher, tmp_path):
    config = _config(splits, "privdfs", distillation=0.5)
    whole = train(config, splits, tmp_path / "whole", device=CPU, teacher=teacher)
    with pytest.raises(KeyboardInterrupt):
        train(config, splits, tmp_path / "parts", device=CPU, teacher=teacher, report=_interrupt)
    with pytest.raises(DataError, match="teacher"):
        train(config, splits, tmp_path / "parts", device=CPU, teacher=whole, resume=True)
    resumed = train(config, splits, tmp_path / "parts", device=CPU, teacher=teacher, resume=True)
    assert all(torch.equal(whole.weights[name], tensor) for name, tensor in resumed.weights.items())


def test_teachers_that_cannot_teach_are_refused(splits, teacher, image_folder, tmp_path):
    with pytest.raises(ConfigError, match="needs a teacher"):
        train(_config(splits, distillation=0.5), splits, tmp_path, device=CPU)
    with pytest.raises(ConfigError, match="none of the targets"):
        train(_config(splits), splits, tmp_path, device=CPU, teacher=teacher)
    other = load_splits(str(image_folder), 16, seed=1)
    with pytest.raises(DataError, match="not the parts that the teacher was trained on"):
        train(_config(splits, distillation=0.5), other, tmp_path, device=CPU, teacher=teacher)
    larger = load_splits(str(image_folder), 32)
    with pytest.raises(ConfigError, match="images of 16, this training has 32"):
        train(_config(splits, distillation=0.5, image_size=32), larger, tmp_path, device=CPU, teacher=teacher)


def test_a_state_of_before_a_setting_was_there_is_continued(splits, tmp_path):
    config = _config(splits)
    with pytest.raises(KeyboardInterrupt):
        train(config, splits, tmp_path, device=CPU, report=_interrupt)
    tensors, record = load_tensors(tmp_path / "state.safetensors")
    del record["settings"]["distillation"], record["settings"]["model"]["blocks"]
    save_tensors(tmp_path / "state.safetensors", tensors, record)
    train(config, splits, tmp_path, device=CPU, resume=True)
    assert load_checkpoint(tmp_path / "model.safetensors").training["distillation"] == 0


def test_another_seed_gives_other_weights(splits, tmp_path):
    one = train(_config(splits, "none", epochs=1), splits, tmp_path / "0", device=CPU)
    two = train(_config(splits, "none", epochs=1, seed=1), splits, tmp_path / "1", device=CPU)
    assert not torch.equal(one.weights["edge.1.0.weight"], two.weights["edge.1.0.weight"])


def test_training_learns(splits, tmp_path):
    """Train accuracy well above chance after a few epochs on a few hundred images."""
    config = _config(splits, "none", epochs=16, learning_rate=3e-3, crop_padding=0, cutmix=0.0)
    checkpoint = train(config, splits, tmp_path / "run", device=CPU)
    chance = 1 / len(splits.class_names)
    assert evaluate(checkpoint.build(), splits.train, CPU) > 2 * chance


def test_the_checkpoint_says_how_it_came_to_be(splits, tmp_path):
    train(_config(splits, "siftfunnel", epochs=1, seed=5), splits, tmp_path, device=CPU)
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.training["seed"] == 5
    assert checkpoint.training["epochs"] == 1
    assert checkpoint.training["seconds"] > 0
    assert checkpoint.training["device"].startswith("cpu")
    assert checkpoint.data == json.loads(json.dumps(splits.record()))
    assert checkpoint.class_names == splits.class_names
    assert set(checkpoint.accuracy) == {"train", "validation", "test"}
    ((low, high),) = checkpoint.feature_ranges
    with torch.no_grad():
        images = torch.from_numpy(splits.train.pixels).permute(0, 3, 1, 2).float() / 255
        (features,) = checkpoint.build().features(images)
    assert (features < low).float().mean() <= 0.002  # a thousandth of each of some batches
    assert (features > high).float().mean() <= 0.002
    assert features.min() <= low < high <= features.max()


def test_a_killed_training_continues_from_its_last_epoch(image_folder, tmp_path):
    out = tmp_path / "run"
    command = [
        *EDGESDK, "train", "--defense", "none", "--data", str(image_folder), "--out", str(out), "--epochs", "4",
        "--image-size", "16", "--batch-size", "32", "--precision", "float32", "--threads", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until((out / "state.safetensors").exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(load_tensors(out / "state.safetensors")[1]["history"])
    assert not (out / "model.safetensors").exists()
    assert_one_line_error(edgesdk(*command[3:]), "add --resume")
    done = edgesdk(*command[3:], "--resume")
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    epochs = [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4]
    assert done.stderr.count("epoch ") == 4 - before


def test_a_state_of_another_training_is_refused(splits, tmp_path):
    train(_config(splits, "none", epochs=1), splits, tmp_path, device=CPU)
    with pytest.raises(DataError, match="settings differ: epochs"):
        train(_config(splits, "none", epochs=2), splits, tmp_path, device=CPU, resume=True)
    other = splits._replace(seed=9)
    with pytest.raises(DataError, match="data differ: seed"):
        train(_config(splits, "none", epochs=1), other, tmp_path, device=CPU, resume=True)
    (tmp_path / "state.safetensors").unlink()
    with pytest.raises(DataError, match="holds a trained model; choose another --out"):
        train(_config(splits, "none", epochs=1), splits, tmp_path, device=CPU, resume=True)


def test_a_diverging_training_stops(splits, tmp_path):
    config = _config(splits, "none", learning_rate=1e18)
    with pytest.raises(DataError, match=r"diverged in epoch \d.*lower --lr"):
        train(config, splits, tmp_path, device=CPU)


def test_a_divergence_in_the_last_step_is_not_saved(splits, tmp_path, monkeypatch):
    import export.train

    monkeypatch.setattr(export.train, "CHECK_STEPS", 10**9)
    with pytest.raises(DataError, match="diverged"):
        train(_config(splits, "none", learning_rate=1e38, batch_size=16), splits, tmp_path, device=CPU)
    assert not (tmp_path / "state.safetensors").exists()


def test_feature_ranges_come_from_all_classes(splits, make_checkpoint):
    from export.train import feature_ranges

    model = make_checkpoint("none").build()
    with torch.no_grad():
        images = torch.from_numpy(splits.train.pixels).permute(0, 3, 1, 2).float() / 255
        rows = torch.linspace(0, len(images) - 1, 20).round().long()
        (features,) = model.features(images[rows])
    assert len(set(splits.train.labels[rows].tolist())) == len(splits.class_names)
    ((low, high),) = feature_ranges(model, splits.train, CPU, num_images=20)
    assert (low, high) == pytest.approx(np.quantile(features.numpy(), (0.001, 0.999)).tolist(), rel=1e-5)


def test_too_few_images_for_a_batch_are_refused(splits, tmp_path):
    with pytest.raises(DataError, match="fewer than one batch of 4096"):
        train(_config(splits, "none", batch_size=4096), splits, tmp_path, device=CPU)


def test_devices():
    assert choose_device("cpu") == CPU
    with pytest.raises(DeviceError, match="auto, cpu or cuda, got 'tpu'"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == CPU
        with pytest.raises(DeviceError, match="no CUDA device"):
            choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_runs_on_a_gpu(splits, tmp_path):
    checkpoint = train(_config(splits, precision="bfloat16"), splits, tmp_path, device=torch.device("cuda"))
    assert checkpoint.training["device"].startswith("cuda")


def test_augmentation_is_seeded_and_keeps_range_and_shape():
    x = torch.rand(16, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    one = augment(x, 4, 0.2, 5)
    torch.manual_seed(1)
    two = augment(x, 4, 0.2, 5)
    assert torch.equal(one, two)
    assert one.shape == x.shape
    assert 0 <= one.min() <= one.max() <= 1
    assert not torch.equal(one, augment(x, 4, 0.2, 5))


def test_augmentation_flips_half_and_shifts_by_whole_pixels():
    x = torch.arange(400.0).view(1, 1, 20, 20).expand(400, 3, 20, 20) / 400
    flipped = augment(x, 0, 0.0, 0)
    share = (flipped[:, 0, 0, 0] != 0).float().mean()
    assert 0.4 < share < 0.6
    torch.manual_seed(0)
    shifted = augment(x, 2, 0.0, 0)
    centre = shifted[:, 0, 10, 10]
    values = {round(value * 400) for value in centre.tolist()}
    upright = {20 * (10 + dy) + 10 + dx for dy in range(-2, 3) for dx in range(-2, 3)}
    mirrored = {20 * (10 + dy) + 9 + dx for dy in range(-2, 3) for dx in range(-2, 3)}
    assert values <= upright | mirrored
    assert len(values) > 20


def test_cutout_blanks_one_square_of_each_image():
    torch.manual_seed(0)
    x = torch.rand(200, 3, 24, 20)
    blank = ((augment(x, 0, 0.0, 6) - x.mean((0, 2, 3), keepdim=True)).abs() < 1e-6).all(1)
    rows, columns = blank.any(2).sum(1), blank.any(1).sum(1)
    assert rows.max() == columns.max() == 6
    assert rows.min() == columns.min() == 3  # around a pixel of the border
    assert torch.equal(blank.sum((1, 2)), rows * columns)


def test_cutmix_mixes_targets_as_it_mixes_pixels():
    torch.manual_seed(0)
    n = 400
    images = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 3, 24, 20)
    mixed, targets = cut_mix(images, torch.eye(n), 0.5)
    assert torch.allclose(targets.sum(1), torch.ones(n))
    for i in range(n):
        found, counts = mixed[i, 0].unique(return_counts=True)
        assert len(found) <= 2
        assert torch.allclose(targets[i, found.long()], counts / (24 * 20))
        inside = mixed[i, 0] != i
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        if len(rows):  # one rectangle
            assert inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        assert torch.equal(mixed[i, 0], mixed[i, 2])
    assert 0.4 < (targets.diag() < 1).float().mean() < 0.55
    assert 0.05 < 1 - targets.diag().mean() < 0.25


def test_without_cutmix_nothing_is_drawn():
    images, targets = torch.rand(4, 3, 8, 8), torch.eye(4)
    torch.manual_seed(0)
    assert cut_mix(images, targets, 0.0) == (images, targets)
    first = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(1))


def test_interrupting_leaves_no_traceback(image_folder, tmp_path):
    command = [
        sys.executable, "-u", "-c", "from edge_sdk.cli import main; main()", "train", "--defense", "none", "--data",
        str(image_folder), "--out", str(tmp_path / "run"), "--epochs", "500", "--image-size", "16", "--batch-size",
        "32", "--precision", "float32", "--threads", "1",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("epoch 1"):
            pass
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert (tmp_path / "run" / "state.safetensors").exists()
