"""The whole audit, with attackers of the smallest size, over real images."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import open_party
from edge_sdk.errors import ConfigError, DataError
from export.audit.attacks.blind import BlindAttack
from export.audit.attacks.diffusion import DiffusionAttack
from export.audit.attacks.inversion import InversionAttack
from export.audit.budget import BUDGETS, Budget, Entry
from export.audit.images import sample
from export.audit.plots import points_of
from export.audit.report import write_html
from export.audit.results import load_report
from export.audit.run import ATTACKS, adversaries, run_audit
from export.audit.target import Target
from export.data import load_splits
from export.parity import parity_images
from export.shipped import shipped_graphs
from export.write_bundle import export_bundle

from .conftest import SIZE, tiny_config


def test_everything_asked_for_is_there(audited, splits):
    report, out = audited
    (view,) = report.views
    assert [attack.name for attack in view.attacks] == ["blind", "inversion", "likelihood"]
    names = {metric.name for metric in view.metrics}
    assert names == {"FSInfo", "MINE", "distance correlation", "feature entropy", "effective information"}
    assert all(metric.seed == 0 for metric in view.metrics)
    without = {metric.name for metric in view.metrics if metric.std_error is None}
    assert without == {"distance correlation"}  # of one group of so few images
    assert view.num_features == 12 * 4 * 4
    assert all(attack.mse_std_error > 0 for attack in view.attacks)
    met = {attack.name: sum(attack.psnr_each[:4]) / 4 for attack in view.attacks}  # by all of them: the first four
    assert min(attack.num_images for attack in view.attacks) == 4
    assert view.best_attack.name == max(met, key=met.get)
    blind = view.attacks[0]
    mean = torch.from_numpy(splits.auxiliary.pixels).float().mean(0) / 255
    attacked = sample(torch.from_numpy(splits.test.pixels), 20).float() / 255
    expected = (-10 * (attacked - mean).square().flatten(1).mean(1).log10()).mean()
    assert blind.psnr_db == pytest.approx(float(expected), abs=0.02)  # the answer is rounded to uint8
    assert load_report(out / "audit.json") == report


class Stopped(Exception):
    pass


def test_a_stopped_audit_goes_on_to_the_same_result(audited, target, splits, tmp_path):
    calls = []

    def stop(what, done, total):
        calls.append(what)
        if len(calls) in (2, 9, 14):  # in a metric, and in two attacks
            raise Stopped

    for _ in range(3):
        with pytest.raises(Stopped):
            run_audit(target, splits, tiny_config(), tmp_path, stop)
    run_audit(target, splits, tiny_config(), tmp_path, stop)
    assert _without_time(tmp_path) == _without_time(audited[1])
    whole = []
    run_audit(target, splits, tiny_config(), tmp_path / "whole", lambda what, done, total: whole.append(what))
    assert len(calls) <= len(whole) + 3 * 2  # each time it lost a step, and told once more what it was at


def _without_time(out):
    report = json.loads((out / "audit.json").read_bytes())
    for view in report["views"]:
        for attack in view["attacks"]:
            del attack["seconds"]
    return report


def test_what_was_asked_before_stays_in_the_report(target, splits, tmp_path):
    run_audit(target, splits, tiny_config(metrics=("dcor",), attacks=("blind",)), tmp_path)
    run_audit(target, splits, tiny_config(metrics=(), attacks=("likelihood",)), tmp_path)
    (view,) = load_report(tmp_path / "audit.json").views
    assert [attack.name for attack in view.attacks] == ["blind", "likelihood"]
    assert [metric.name for metric in view.metrics] == ["distance correlation"]


def test_the_best_attack_is_the_best_on_images_that_all_met(audited):
    """Few images may happen to be easy ones."""
    (view,) = audited[0].views
    attack = view.attacks[0]
    many = msgspec.structs.replace(attack, name="many", num_images=4, psnr_db=14.0, psnr_each=(17.0, 17.0, 11.0, 11.0))
    few = msgspec.structs.replace(attack, name="few", num_images=2, psnr_db=16.0, psnr_each=(16.0, 16.0))
    assert msgspec.structs.replace(view, attacks=(few, many)).best_attack.name == "many"


def test_the_worst_adversary_is_the_worst_on_images_that_all_met(audited):
    """Of the second many images were met by all attacks, of the first two, which are easy ones."""
    (view,) = audited[0].views
    attack = view.attacks[0]
    many = msgspec.structs.replace(attack, num_images=4, psnr_db=14.5, psnr_each=(18.0, 18.0, 11.0, 11.0))
    few = msgspec.structs.replace(attack, num_images=2, psnr_db=16.0, psnr_each=(16.0, 16.0))
    easy, hard = (
        msgspec.structs.replace(view, name=name, attacks=(each,)) for name, each in (("easy", few), ("hard", many))
    )
    report = msgspec.structs.replace(audited[0], views=(easy, hard))
    assert report.worst.name == "hard"
    points = points_of([report])
    assert [(point.psnr_db, point.met) for point in points] == [(16.0, 2), (18.0, 2)]


def test_the_decoder_that_does_better_on_validation_images_is_the_attack(target, splits, tmp_path, monkeypatch):
    """Whichever place it has among the candidates: the mean image is better than what a random network answers."""
    random = InversionAttack(width=8, epochs=1, learning_rate=1e-9, seed=0)
    for order in ((random, BlindAttack()), (BlindAttack(), random)):
        monkeypatch.setitem(BUDGETS, "tiny", lambda seed, order=order: Budget({"inversion": Entry(order, 20)}, 60, 2))
        out = tmp_path / order[0].name
        report = run_audit(target, splits, tiny_config(metrics=(), attacks=("inversion",)), out)
        assert report.worst.best_attack.settings["name"] == "blind"


def test_an_adversary_of_whom_nothing_was_found_is_not_in_the_report(make_checkpoint, splits, tmp_path):
    target = Target(replace(make_checkpoint("privdfs", size=SIZE, image_size=SIZE), data=splits.record()))
    config = tiny_config(metrics=(), attacks=("blind",))

    def stop(what, done, total):
        if "+" in what:
            raise Stopped

    with pytest.raises(Stopped):
        run_audit(target, splits, replace(config, collude=2), tmp_path, stop)
    report = run_audit(target, splits, config, tmp_path)
    assert [view.name for view in report.views[:-1]] == [f"server{k}" for k in range(4)]
    assert len(report.views[-1].servers) == 4


def test_what_cannot_be_asked_leaves_no_folder(target, splits, tmp_path):
    with pytest.raises(ConfigError, match=r"^9 servers cannot collude: this model has 1; leave --collude out$"):
        run_audit(target, splits, tiny_config(collude=9), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_settings_are_named(target, splits, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "settings.json").write_text("{")
    with pytest.raises(DataError, match=r"settings.json: damaged"):
        run_audit(target, splits, tiny_config(), tmp_path)


def test_a_folder_of_another_audit_is_not_mixed(audited, target, splits):
    with pytest.raises(DataError, match="seed differ"):
        run_audit(target, splits, tiny_config(seed=1), audited[1])


def test_diffusion_attacks_features_with_noise(make_checkpoint, splits):
    """The noise is drawn by the encoder, in float32, though the attacker trains in bfloat16."""
    view = Target(make_checkpoint("gaussian", size=SIZE)).view([0])
    own = torch.from_numpy(splits.auxiliary.pixels[:32]).permute(0, 3, 1, 2).contiguous()
    attack = DiffusionAttack(width=16, condition=16, epochs=1, batch_size=16, sampling_steps=2)
    rebuild = attack.fit(view, own, None, lambda done, total: None)
    assert rebuild(view.observe(own[:4].float() / 255)).shape == (4, 3, SIZE, SIZE)


def test_an_audit_of_before_a_setting_was_there_goes_on(target, splits, tmp_path):
    run_audit(target, splits, tiny_config(metrics=("dcor",), attacks=("blind",)), tmp_path)
    path = tmp_path / "work" / "settings.json"
    settings = json.loads(path.read_text())
    del settings["device"], settings["precision"], settings["config"]["blocks"]
    path.write_text(json.dumps(settings))
    report = run_audit(target, splits, tiny_config(metrics=(), attacks=("likelihood",)), tmp_path)
    assert [attack.name for attack in report.views[0].attacks] == ["blind", "likelihood"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_attackers_on_a_gpu_rebuild_what_they_rebuild_on_the_cpu(target, audited, splits, tmp_path):
    on_gpu = Target(target.checkpoint, device=torch.device("cuda"))
    report = run_audit(on_gpu, splits, tiny_config(attacks=ATTACKS), tmp_path)
    assert report.machine["device"].startswith("cuda")
    for ours, theirs in zip(report.views[0].attacks, audited[0].views[0].attacks, strict=False):
        assert ours.psnr_db == pytest.approx(theirs.psnr_db, abs=0.5)
    for ours, theirs in zip(report.views[0].metrics, audited[0].views[0].metrics, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=0.02)


def test_images_of_another_split_are_refused(target, image_folder, tmp_path):
    with pytest.raises(DataError, match="not the parts that this model was trained on"):
        run_audit(target, load_splits(str(image_folder), SIZE, seed=1), tiny_config(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attacks": ("magic",)}, "no attack 'magic'; available: blind"),
        ({"metrics": ("magic",)}, "no metric 'magic'; available: fsinfo"),
        ({"metrics": (), "attacks": ()}, "nothing to audit"),
        ({"budget": "huge"}, "no budget 'huge'; available: small, full"),
        ({"num_images": 1}, "at least 2 images"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        tiny_config(**settings)


def test_adversaries_are_each_server_every_colluding_set_and_all():
    assert [(a.name, a.in_threat_model) for a in adversaries(1, None)] == [("server0", True)]
    four = adversaries(4, None)
    assert [a.name for a in four] == ["server0", "server1", "server2", "server3", "server0+server1+server2+server3"]
    assert [a.in_threat_model for a in four] == [True] * 4 + [False]
    pairs = [a for a in adversaries(5, None) if len(a.servers) == 2]
    assert len(pairs) == 10
    assert all(a.in_threat_model for a in pairs)  # 2 of 5: fewer than half
    assert not any(a.in_threat_model for a in adversaries(4, 2) if len(a.servers) == 2)
    with pytest.raises(ConfigError, match=r"^5 servers cannot collude: this model has 4, so --collude is 1 to 4$"):
        adversaries(4, 5)


@pytest.mark.parametrize("wire_dtype", ["float32", pytest.param("uint8", marks=pytest.mark.slow)])
def test_what_is_attacked_is_what_the_exported_encoder_sends(target, wire_dtype, splits, tmp_path):
    checkpoint = target.checkpoint
    export_bundle(checkpoint, tmp_path / "b", images=parity_images(None, SIZE), wire_dtype=wire_dtype)
    edge = open_party(tmp_path / "b" / "edge")
    encoder_cost = edge.manifest.parts[0].cost
    assert encoder_cost is not None
    pixels = splits.test.pixels[:5]
    with OnnxRuntimeBackend(edge.onnx(edge.manifest.parts[0])) as encoder:
        sent = encoder.run({"image": pixels})["features"].astype(np.float32)
    low, high = checkpoint.feature_ranges[0]
    step = (high - low) / 255
    attacked = target if wire_dtype == "float32" else Target(checkpoint, wire_dtype=wire_dtype)
    assert (attacked.edge_cost.flops, attacked.wire_bytes) == (encoder_cost.flops, edge.manifest.wire_bytes)
    view = attacked.view([0])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    (seen,), (features,) = view.observe(images), view.features(images)
    assert np.allclose(seen.numpy(), sent if wire_dtype == "float32" else sent * step + low, atol=1e-6)
    # The differentiable features are those before rounding.
    inside = (features > low) & (features < high)
    tolerance = 1e-4 if wire_dtype == "float32" else step / 2 + 1e-4
    assert float((features - seen)[inside].abs().max()) < tolerance


def test_one_servers_share_is_seen_in_its_places(make_checkpoint, splits):
    target = Target(make_checkpoint("privdfs", size=SIZE, image_size=SIZE))
    whole, alone = target.view([0, 1, 2, 3]), target.view([2])
    images = torch.from_numpy(splits.test.pixels[:3]).permute(0, 3, 1, 2).float() / 255
    shares, (share,) = whole.observe(images), alone.observe(images)
    assert torch.equal(share, shares[2])
    assert share.shape[1:] == shares[0].shape[1:]  # the shape of the features that were cut up
    assert alone.num_received * 4 == whole.num_received < share[0].numel()
    assert (share != 0).flatten(1).sum(1).max() <= alone.num_received
    (features,) = alone.features(images)
    assert torch.allclose(share, features, atol=1e-4)
    (numbers,) = alone.as_sent([torch.arange(1.0, share[0].numel() + 1).view(share.shape[1:])])  # of every place
    (sent,) = alone.shares(images)
    assert numbers.shape == sent.shape[1:]
    assert torch.equal(features.flatten(1)[:, numbers.long() - 1], sent)
    for servers in ([4], [], [1, 1]):
        with pytest.raises(ConfigError, match="different numbers from 0 to 3"):
            target.view(servers)


def test_noise_is_on_where_it_ships(make_checkpoint, splits):
    """What is attacked is what the exported encoder makes of the numbers that it is fed, drawn for each request."""
    checkpoint = make_checkpoint("gaussian", size=SIZE, sigma=0.7)
    target = Target(checkpoint)
    view = target.view([0])
    pixels = splits.test.pixels[:8]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    torch.manual_seed(3)
    (first,), (second,), (plain,) = view.observe(images), view.observe(images), view.features(images)
    for seen in (first, second):
        noise = seen - plain.detach()
        assert float(noise.std()) == pytest.approx(0.7, rel=0.02)
        assert abs(float(noise.mean())) < 0.02
    assert float((first - second).std()) == pytest.approx(0.7 * 2**0.5, rel=0.02)
    graphs = shipped_graphs(checkpoint, "float32")
    torch.manual_seed(3)
    drawn = torch.randn(plain.shape).numpy()
    with OnnxRuntimeBackend(graphs.encoder_onnx(SIZE, "dynamic")) as encoder:
        sent = encoder.run({"image": pixels, "noise": drawn})["features"]
    assert np.allclose(first.numpy(), sent, atol=1e-6)


def test_dropped_features_stay_dropped(make_checkpoint, splits):
    view = Target(make_checkpoint("dropout", size=SIZE, rate=0.75)).view([0])
    images = torch.from_numpy(splits.test.pixels[:8]).permute(0, 3, 1, 2).float() / 255
    (seen,), (plain,) = view.observe(images), view.features(images)
    sent = seen != 0
    assert float(sent.float().mean() / (plain != 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.allclose(seen[sent], plain[sent], atol=1e-5)


def test_a_lower_precision_is_attacked_as_it_ships(target, splits, tmp_path):
    checkpoint, calibration = target.checkpoint, splits.train.pixels[:16]
    export_bundle(
        checkpoint, tmp_path / "b", images=parity_images(None, SIZE), precisions=["fp16", "int8"],
        calibration=calibration,
    )  # fmt: skip
    edge = open_party(tmp_path / "b" / "edge")
    pixels = splits.test.pixels[:5]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    (plain,) = target.sent(images)
    for precision in ("fp16", "int8"):
        with OnnxRuntimeBackend(edge.onnx(edge.manifest.parts[0], precision)) as encoder:
            shipped = encoder.run({"image": pixels})["features"]
        lower = Target(checkpoint, precision=precision, calibration=calibration)
        (sent,) = lower.sent(images)
        assert np.array_equal(sent.numpy(), shipped)
        assert not torch.equal(sent, plain)
        assert lower.edge_cost == target.edge_cost
        run_audit(target, splits, tiny_config(metrics=(), attacks=("blind",)), tmp_path / precision)
        with pytest.raises(DataError, match="precision differ"):
            run_audit(lower, splits, tiny_config(metrics=(), attacks=("blind",)), tmp_path / precision)


def test_several_servers_are_audited_each_and_together(make_checkpoint, splits, tmp_path):
    checkpoint = replace(make_checkpoint("privdfs", size=SIZE, image_size=SIZE), data=splits.record())
    target = Target(checkpoint)
    config = tiny_config(metrics=("fsinfo", "effective"), attacks=("blind", "inversion"))
    report = run_audit(target, splits, config, tmp_path)
    alone = report.views[:4]
    assert [view.name for view in alone] == ["server0", "server1", "server2", "server3"]
    assert [view.in_threat_model for view in report.views] == [True] * 4 + [False]
    assert report.worst in alone
    information = [view.metric("FSInfo").value for view in report.views]
    assert max(information[:4]) < information[4]  # together they know more
    page = write_html(report, target, splits, tmp_path, []).read_text()
    assert all(f"<h2>{view.name}</h2>" in page for view in report.views)
    assert "More servers than the defense claims anything against" in page
    assert "5 points" in page
    assert page.count("<svg") == 6
    pairs = run_audit(target, splits, tiny_config(metrics=(), attacks=("blind",), collude=2), tmp_path)
    assert [len(view.servers) for view in pairs.views] == [1] * 4 + [2] * 6 + [4]
    assert not any(view.in_threat_model for view in pairs.views[4:])
    again = run_audit(target, splits, tiny_config(metrics=("effective",), attacks=("blind",)), tmp_path)
    assert again == pairs  # what was found before stays in the report, and nobody else is attacked for it
