import hashlib
import json
import math
from dataclasses import asdict, replace

import msgspec
import pytest

from edge_sdk.errors import DataError, LeakageError
from export.audit.gate import audit_summary
from export.audit.results import AttackResult, AuditReport, MetricResult, ViewResult
from export.audit.run import ATTACKS

from ...conftest import assert_one_line_error, edgesdk, edgesdk_here


def _attack(name, psnr_db, num_images=16):
    return AttackResult(
        name=name, settings={}, num_images=num_images, mse=10 ** (-psnr_db / 10), psnr_db=psnr_db, psnr_std_error=0.1,
        ssim=0.5, ssim_std_error=0.01, psnr_each=(psnr_db,) * num_images, seconds=1.0,
    )  # fmt: skip


def _view(name, *decibels, fsinfo=None, assumed_noise=None, in_threat_model=True, num_images=16):
    """Attacked by all, the first at so many decibels and those not named at 12."""
    information = MetricResult("FSInfo", fsinfo or 0.0, "nats a dimension", 0.05, num_images, 0, assumed_noise)
    metrics = () if fsinfo is None else (information,)
    found = zip(ATTACKS, [*decibels, 12.0, 12.0, 12.0], strict=False) if decibels else ()
    attacks = tuple(_attack(attack, each, num_images) for attack, each in found)
    servers = tuple(int(each.removeprefix("server")) for each in name.split("+"))
    return ViewResult(name, servers, in_threat_model, 10, metrics, attacks)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint):
    return make_checkpoint("none")


@pytest.fixture
def audit(checkpoint, tmp_path):
    """Writes an audit of the checkpoint and gives its path."""

    def write(*views, file="audit", **changes):
        report = AuditReport(
            **{
                "weights_sha256": checkpoint.weights_sha256, "defense": "none", "image_size": 32,
                "config": json.loads(json.dumps(asdict(checkpoint.config))),
                "accuracy": {"test": 0.1}, "edge_flops": 1, "wire_bytes": 1, "wire_dtype": "float32", "data": {},
                "budget": "small", "seed": 0, "machine": {}, "views": views, **changes,
            }
        )  # fmt: skip
        path = tmp_path / f"{file}{'' if report.precision == 'fp32' else report.precision}.json"
        path.write_bytes(msgspec.json.encode(report))
        return path

    return write


def test_the_summary_names_the_worst_adversary_and_the_best_attack(checkpoint, audit):
    path = audit(
        _view("server0", 14.0, 17.5, fsinfo=0.5), _view("server1", 16.0, fsinfo=0.7), _view("server2", 13.0, fsinfo=0),
        _view("server0+server1+server2", 25.0, in_threat_model=False),
    )  # fmt: skip
    summary = audit_summary(checkpoint, [path], "float32", 32, max_psnr_db=18, max_fsinfo=0.8)
    assert summary == {  # and nothing was left out
        "audit_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "weights_sha256": checkpoint.weights_sha256,
        "wire_dtype": "float32",
        "precision": "fp32",
        "budget": "small",
        "num_adversaries": 3,
        "best_attack": {
            "name": "inversion",
            "adversary": "server0",
            "psnr_db": 17.5,
            "psnr_p95_db": 17.5,
            "ssim": 0.5,
            "num_images": 16,
        },
        "fsinfo_nats_a_dimension": 0.7,
    }


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_audits_of_one_precision_both_count(checkpoint, audit, order):
    small, full = audit(_view("server0", 14.0, fsinfo=0.5), file="small"), audit(_view("server0", 18.0), file="full")
    with pytest.raises(LeakageError, match=r"full.json: blind rebuilds images from server0 at 18.00 dB"):
        audit_summary(checkpoint, [small, full][::order], "float32", 32, max_psnr_db=16)
    summary = audit_summary(checkpoint, [small, full][::order], "float32", 32, max_psnr_db=19)
    assert summary["best_attack"]["psnr_db"] == 18


def test_without_a_limit_a_missing_or_foreign_audit_is_no_summary(checkpoint, audit, tmp_path):
    assert audit_summary(checkpoint, [tmp_path / "none.json"], "float32", 32) is None
    assert audit_summary(checkpoint, [audit(_view("server0", 14.0), weights_sha256="0")], "float32", 32) is None


def test_a_named_audit_must_be_there_and_fit(checkpoint, audit, tmp_path):
    for path, words in (
        (tmp_path / "none.json", "none.json: is missing"),
        (tmp_path, "is not a file"),
        (audit(_view("server0", 14.0), weights_sha256="0"), "of other weights"),
        (audit(_view("server0", 14.0), precision="int8"), "audits of int8 alone, which is not exported"),
    ):
        with pytest.raises(LeakageError, match=words):
            audit_summary(checkpoint, [path], "float32", 32, named=True)


def test_the_command_refuses_a_named_audit_that_is_missing(tmp_path):
    command = ("export", "--defense", "none", "--out", tmp_path / "b", "--audit", tmp_path / "no.json")
    assert_one_line_error(edgesdk_here(*command), "no.json: is missing")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("views", "changes", "limits", "words"),
    [
        ([_view("server0", 14.0, 17.5)], {}, {"max_psnr_db": 17}, "inversion rebuilds images from server0 at 17.50 dB"),
        (  # whatever is the best on the images that all met
            [_view("server0", 14.0, 15.0, 17.5)],
            {},
            {"max_psnr_db": 17},
            "likelihood rebuilds images from server0",
        ),
        (
            [_view("server0", 14.0, 16.9)],
            {},
            {"max_psnr_db": 17},
            "16.90 dB PSNR, with 95 % confidence at no more than 17.06 dB",
        ),
        (
            [_view("server0", fsinfo=0.95)],
            {},
            {"max_fsinfo": 1},
            "FSInfo of 0.950 nats a dimension, with 95 % confidence no more than 1.032, which is more than 1",
        ),
        ([_view("server0", fsinfo=0.5, num_images=15)], {}, {"max_fsinfo": 1}, "is of 15 images; 16 are the least"),
        ([_view("server0", fsinfo=1.5)], {}, {"max_psnr_db": 17}, "server0 was not attacked by blind, inversion"),
        ([_view("server0", 14.0, num_images=15)], {}, {"max_psnr_db": 17}, "15 images were attacked; 16 are the least"),
        (
            [_view(f"server{k}", 14.0) for k in range(5)] + [_view("server0+server1+server2+server3+server4", 20.0)],
            {},
            {"max_psnr_db": 17},
            r"lacks the adversary server0\+server1",
        ),
        ([_view("server0", 14.0)], {"defense": "dropout"}, {"max_psnr_db": 17}, "of dropout with other settings"),
        ([_view("server0", 14.0)], {"config": {"split": 1}}, {"max_psnr_db": 17}, "of none with other"),
        ([_view("server0", 14.0)], {"config": {"unheard": 1}}, {"max_psnr_db": 17}, "of none with other settings"),
        ([_view("server0", 14.0)], {}, {"max_fsinfo": 1}, "has no FSInfo of server0"),
        ([_view("server0", 14.0)], {}, {"max_psnr_db": math.nan}, "14.00 dB PSNR, more than nan dB"),
        ([_view("server0", fsinfo=1.5)], {}, {"max_fsinfo": math.nan}, "1.582, which is more than nan"),
        ([_view("server0", fsinfo=1.5, assumed_noise=0.01)], {}, {"max_fsinfo": 9}, "none adds no Gaussian noise"),
        ([_view("server0", 14.0)], {"precision": "int8"}, {"max_psnr_db": 17}, "no audit of the fp32 encoder"),
        ([_view("server0", 14.0)], {"weights_sha256": "0"}, {"max_psnr_db": 17}, "of other weights"),
        ([_view("server0", 14.0)], {"wire_dtype": "uint8"}, {"max_psnr_db": 17}, "of uint8 features, not float32"),
        ([_view("server0", 14.0)], {"image_size": 64}, {"max_psnr_db": 17}, "of 64x64 images, not 32x32"),
    ],
)
def test_an_export_over_the_limit_is_refused(checkpoint, audit, views, changes, limits, words):
    with pytest.raises(LeakageError, match=words):
        audit_summary(checkpoint, [audit(*views, **changes)], "float32", 32, **limits)


def test_a_summary_says_what_the_audit_left_out(checkpoint, audit):
    partial = msgspec.structs.replace(_view("server0", 14.0), attacks=(_attack("blind", 12.0),))
    summary = audit_summary(checkpoint, [audit(partial)], "float32", 32)
    assert summary["left_out"] == {"server0": ["inversion", "likelihood", "diffusion"]}
    several = audit_summary(checkpoint, [audit(*(_view(f"server{k}", 14.0) for k in range(5)))], "float32", 32)
    assert several["left_out"]["server0+server1"] == list(ATTACKS)


def test_an_audit_of_float32_features_holds_for_rounded_ones(checkpoint, audit):
    assert audit_summary(checkpoint, [audit(_view("server0", 14.0))], "uint8", 32, max_psnr_db=15) is not None


def test_every_precision_of_the_export_needs_its_own_audit(checkpoint, audit):
    both = ("fp32", "int8")
    full = audit(_view("server0", 14.0))
    with pytest.raises(LeakageError, match=r"no audit of the int8 encoder.* audited fp32; .*--precision int8"):
        audit_summary(checkpoint, [full], "float32", 32, precisions=both, max_psnr_db=17)
    lower = audit(_view("server0", 15.0), precision="int8")
    summary = audit_summary(checkpoint, [full, lower], "float32", 32, precisions=both, max_psnr_db=17)
    assert (summary["precision"], summary["best_attack"]["psnr_db"]) == ("int8", 15.0)
    assert audit_summary(checkpoint, [full, lower], "float32", 32, max_psnr_db=14.5)["precision"] == "fp32"
    with pytest.raises(LeakageError, match=r"auditint8\.json: blind rebuilds images from server0 at 15\.00 dB"):
        audit_summary(checkpoint, [full, lower], "float32", 32, precisions=both, max_psnr_db=14.5)


def test_assumed_noise_is_no_headline(checkpoint, audit):
    summary = audit_summary(checkpoint, [audit(_view("server0", 14.0, fsinfo=1, assumed_noise=0.01))], "float32", 32)
    assert "fsinfo_nats_a_dimension" not in summary


def test_a_limit_without_an_audit_and_a_broken_audit_are_refused(checkpoint, tmp_path):
    with pytest.raises(LeakageError, match="no audit to hold the export to"):
        audit_summary(checkpoint, [tmp_path / "audit.json"], "float32", 32, max_psnr_db=15)
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(DataError, match="not an audit"):
        audit_summary(checkpoint, [tmp_path / "audit.json"], "float32", 32)


def test_one_changed_weight_is_another_model(checkpoint):
    name = next(iter(checkpoint.weights))
    changed = replace(checkpoint, weights={**checkpoint.weights, name: checkpoint.weights[name] + 1e-6})
    assert changed.weights_sha256 != checkpoint.weights_sha256
    assert replace(checkpoint).weights_sha256 == checkpoint.weights_sha256


def test_the_command_refuses_with_the_figure_and_exports_nothing(checkpoint, audit, tmp_path):
    checkpoint.save(tmp_path / "model.safetensors")
    audit(_view("server0", 14.0, 27.25))
    out = tmp_path / "b"
    command = ("export", "--defense", "none", "--checkpoint", tmp_path / "model.safetensors", "--out", out)
    done = edgesdk(*command, "--max-psnr", "15")
    assert_one_line_error(done, "27.25 dB", "more than 15 dB")
    assert not out.exists()


def test_an_int8_encoder_calibrated_on_other_images_was_not_audited(checkpoint, audit, image_folder, tmp_path):
    checkpoint.save(tmp_path / "model.safetensors")
    for precision in ("fp32", "int8"):
        audit(_view("server0", 14.0), precision=precision)
    out = tmp_path / "b"
    command = ("export", "--defense", "none", "--checkpoint", tmp_path / "model.safetensors", "--out", out)
    audits = ("--audit", tmp_path / "audit.json", "--audit", tmp_path / "auditint8.json")
    done = edgesdk(*command, *audits, "--precision", "int8", "--data", image_folder, "--max-psnr", "17")
    assert_one_line_error(done, "an encoder calibrated on other images was not audited")
    assert not out.exists()


def test_an_export_within_the_limit_carries_its_audit(checkpoint, audit, tmp_path):
    checkpoint.save(tmp_path / "model.safetensors")
    path = audit(_view("server0", 14.0, 16.5))
    out = tmp_path / "b"
    done = edgesdk(
        "export", "--defense", "none", "--checkpoint", tmp_path / "model.safetensors", "--out", out, "--max-psnr", "17"
    )
    assert done.returncode == 0, done.stderr
    privacy = json.loads((out / "edge" / "manifest.json").read_bytes())["privacy"]
    assert privacy["audit_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert privacy["best_attack"]["psnr_db"] == 16.5
    assert "16.5" in edgesdk("inspect", out / "edge").stdout
    assert "not attacked" not in edgesdk("inspect", out / "edge").stdout


def test_a_bundle_of_a_half_made_audit_says_so(checkpoint, audit, tmp_path):
    checkpoint.save(tmp_path / "model.safetensors")
    audit(msgspec.structs.replace(_view("server0", 14.0), attacks=(_attack("blind", 12.0),)))
    out = tmp_path / "b"
    command = ("export", "--defense", "none", "--checkpoint", tmp_path / "model.safetensors", "--out", out)
    assert edgesdk(*command).returncode == 0
    said = edgesdk("inspect", out / "edge").stdout
    assert "12.00 dB" in said
    assert "server0 was not attacked by inversion, likelihood, diffusion" in said
