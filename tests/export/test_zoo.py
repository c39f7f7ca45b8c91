"""The shipped models do what their cards say."""

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from hashlib import sha256

import pytest

from edge_sdk.bundle import open_party, parties
from edge_sdk.engine.build import EngineOptions
from edge_sdk.engine.process import build_apart
from edge_sdk.errors import ConfigError
from edge_sdk.profile.end_to_end import measure
from export.audit.gate import audit_summary
from export.checkpoint import load_checkpoint
from export.data import image_folder, load_splits
from export.train import evaluate
from export.zoo import zoo_model

from ..conftest import ARCHIVE, ROOT, edgesdk, serving

ZOO = ROOT / "export" / "zoo"
GPUS = ("sm_80", "sm_86", "sm_89", "sm_120")
MODELS = sorted(path.parent.name for path in ZOO.glob("*/model.safetensors"))


def test_the_undefended_and_the_defended_cnn_are_shipped():
    assert {"fsinfoguard-cnn", "none-cnn", "privdfs-cnn", "siftfunnel-cnn"} <= set(MODELS)
    assert sum(path.stat().st_size for path in ZOO.rglob("*")) < 25e6


def test_all_that_began_with_random_weights_were_trained_by_the_same_recipe_and_budget():
    trainings = [load_checkpoint(ZOO / name / "model.safetensors").training for name in MODELS]
    trainings = [training for training in trainings if "base" not in training]
    assert trainings
    keys = ("recipe", "epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "schedule", "crop_padding",
            "color_jitter", "cutout", "cutmix", "betas", "amsgrad", "precision", "image_size")  # fmt: skip
    assert len({json.dumps([training[key] for key in keys]) for training in trainings}) == 1


@pytest.mark.parametrize("name", MODELS)
def test_the_card_states_what_the_checkpoint_records(name):
    checkpoint = load_checkpoint(ZOO / name / "model.safetensors")
    card = (ZOO / name / "README.md").read_text()
    assert f"| test accuracy | {checkpoint.accuracy['test']:.2%} " in card
    assert f"epochs={checkpoint.training['epochs']}" in card
    assert ("taught by" in card) == ("teacher" in checkpoint.training)
    assert ("began with the weights of the model" in card) == ("base" in checkpoint.training)
    assert zoo_model(checkpoint.defense, checkpoint.config.backbone).parent.name == name


@pytest.mark.parametrize("name", [path.parent.name for path in ZOO.glob("*/audit.json")])
def test_a_shipped_audit_holds_for_the_shipped_model(name):
    checkpoint = load_checkpoint(ZOO / name / "model.safetensors")
    summary = audit_summary(checkpoint, [ZOO / name / "audit.json"], "float32", 32, max_psnr_db=60)
    assert summary is not None
    assert f"{summary['best_attack']['psnr_db']:.2f} dB" in (ROOT / "README.md").read_text()


def test_the_readme_has_the_table_of_the_kept_audits():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "audit_table.py"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    readme = (ROOT / "README.md").read_text()
    assert all(text in readme for text in done.stdout.strip().split("\n\n"))


def test_the_readme_says_who_was_taught():
    taught = [
        c.defense for c in (load_checkpoint(ZOO / n / "model.safetensors") for n in MODELS) if "teacher" in c.training
    ]
    assert ("taught by the undefended model" in (ROOT / "README.md").read_text()) == bool(taught)


def test_an_unknown_model_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"shipped: .*none-cnn"):
        zoo_model("none", "vgg16")


@pytest.mark.parametrize("name", MODELS)
def test_the_readme_states_the_recorded_accuracy(name):
    accuracy = load_checkpoint(ZOO / name / "model.safetensors").accuracy["test"]
    assert f"{accuracy * 100:.2f} %" in (ROOT / "README.md").read_text()


@pytest.fixture(scope="session")
def test_images(cifar_archive, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESDK_CACHE", str(tmp_path_factory.mktemp("cache")))
        return image_folder(str(cifar_archive))


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """A shipped model's name and its bundle, compared with torch on real images where they are here."""
    defense, _, backbone = request.param.rpartition("-")
    out = tmp_path_factory.mktemp("zoo") / "b"
    real = ARCHIVE.exists()
    data = ("--data", request.getfixturevalue("cifar_sample")) if real else ()
    options = ("--defense", defense, "--backbone", backbone, "--out", out, "--precision", "fp16", *data)
    done = edgesdk("export", *options)
    assert done.returncode == 0, done.stderr
    assert ("64 real images of test" in done.stdout) == real
    return request.param, out


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_served_bundle_reaches_the_recorded_accuracy(exported, cifar_sample, precision):
    """Some 300 test images end to end: within four standard errors of the accuracy over all of them."""
    name, out = exported
    with ExitStack() as stack:
        servers = [
            option
            for folder in parties(out)[1:]
            for option in ("--server", stack.enter_context(serving(folder, "--precision", precision))[0])
        ]
        options = ("--data", cifar_sample / "test", "--precision", precision, "--json")
        done = edgesdk("measure", out / "edge", *servers, *options)
    report = json.loads(done.stdout)
    recorded = load_checkpoint(ZOO / name / "model.safetensors").accuracy["test"]
    count = report["num_labelled"]
    assert count > 300
    assert abs(report["accuracy"] - recorded) < 4 * (recorded * (1 - recorded) / count) ** 0.5


@pytest.mark.parametrize(("precision", "targets"), [("fp32", GPUS), ("fp16", ("sm_75", *GPUS))])
def test_every_shipped_file_builds_as_an_engine(rtx, exported, precision, targets, tmp_path):
    name, out = exported
    options = [option for target in targets for option in ("--target", target)]
    records = []
    for party in parties(out):
        done = edgesdk("build", party, "--precision", precision, *options, "--out", tmp_path, "--json", "-")
        assert done.returncode == 0, done.stderr
        records += [engine["record"] for engine in json.loads(done.stdout).values()]
    assert all(record["options"]["targets"] == list(targets) for record in records)
    assert any(layer["kind"] == "CONVOLUTION" for record in records for layer in record["layers"])
    built = {record["onnx_sha256"] for record in records}
    edge = open_party(out / "edge")
    if reference := edge.manifest.reference:  # profile alone builds it
        onnx = edge.onnx(reference, precision)
        assert build_apart(onnx, EngineOptions(precision=precision, targets=targets), "tensorrt_rtx").content
        built.add(sha256(onnx).hexdigest())
    assert (edge.manifest.reference is None) == name.startswith("none-")
    assert built == {sha256(path.read_bytes()).hexdigest() for path in _files(out, precision)}


def _files(bundle, precision):
    """The file of every graph of all parties in a precision; that of float32 where there is no other."""
    plain = [path for path in bundle.rglob("*.onnx") if path.name.count(".") == 1]
    lower = {path: path.with_suffix(f".{precision}.onnx") for path in plain}
    return [lower[path] if lower[path].exists() else path for path in plain]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::edge_sdk.collusion.ColocationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_all_test_images_end_to_end_equal_torch_to_a_tenth_of_a_point(name, cifar_archive, test_images, tmp_path):
    import torch

    checkpoint = load_checkpoint(ZOO / name / "model.safetensors")
    splits = load_splits(str(cifar_archive), checkpoint.image_size)
    assert splits.record() == checkpoint.data
    in_torch = evaluate(checkpoint.build(), splits.test, torch.device("cpu"))
    assert in_torch == pytest.approx(checkpoint.accuracy["test"], abs=5e-4)
    out = tmp_path / "b"
    assert edgesdk("export", "--defense", checkpoint.defense, "--out", out).returncode == 0
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(folder))[0] for folder in parties(out)[1:]]
        report = measure(out / "edge", urls, test_images)
    assert report.num_labelled == len(splits.test) == 8000
    assert abs(report.accuracy - in_torch) <= 1e-3


def test_splits_named_on_the_cards_are_disjoint_by_hash():
    for name in MODELS:
        card = (ZOO / name / "README.md").read_text()
        hashes = re.findall(r"^\| (?:train|validation|auxiliary|test) \| [\d,]+ \| `(\w+)` \|", card, re.MULTILINE)
        assert len(set(hashes)) == 4
