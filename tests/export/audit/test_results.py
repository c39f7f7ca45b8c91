"""Which figures of audits may be compared, and on which images."""

import msgspec
import pytest

from export.audit.plots import points_of
from export.audit.results import AttackResult, AuditReport, MetricResult, ViewResult, differences

INFORMATION = MetricResult("FSInfo", 1.0, "nats a dimension", 0.1, 16)


def _attack(name, *decibels):
    mean = sum(decibels) / len(decibels)
    return AttackResult(name, {}, len(decibels), 0.1, mean, 0.1, 0.5, 0.01, decibels, 1.0)


def _view(name, *attacks):
    return ViewResult(name, (int(name[-1]),), True, 10, (INFORMATION,), attacks)


def _report(*views, **changes):
    return AuditReport(
        **{
            "weights_sha256": "0", "defense": "none", "image_size": 32, "config": {}, "accuracy": {"test": 0.1},
            "edge_flops": 1, "wire_bytes": 1, "wire_dtype": "float32", "data": {}, "budget": "small", "seed": 0,
            "machine": {}, "code_sha256": "a", "views": views, **changes,
        }
    )  # fmt: skip


def test_an_attack_that_met_few_images_does_not_make_others_count_fewer():
    """Of the second server the first two images are the easier ones, and of all it rebuilds less."""
    few = _attack("likelihood", 9.0, 9.0)
    first = _view("server0", _attack("inversion", 15.0, 15.0, 15.0, 15.0), few)
    second = _view("server1", _attack("inversion", 15.1, 15.1, 14.7, 14.7), few)
    report = _report(first, second)
    assert report.worst.name == "server0"
    assert [(point.psnr_db, point.met) for point in points_of([report])] == [
        (pytest.approx(15.0), 4),
        (pytest.approx(14.9), 4),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"defense": "dropout", "weights_sha256": "1", "wire_dtype": "uint8", "precision": "int8"}, []),
        ({"data": {"name": "other"}}, ["images"]),
        ({"image_size": 64}, ["size of images"]),
        ({"budget": "full", "seed": 1}, ["budget", "seed"]),
        ({"code_sha256": "b"}, ["attackers' code"]),
        ({"views": (_view("server0", _attack("inversion", 1.0)),)}, ["number of images"]),
        ({"views": (_view("server0", _attack("likelihood", 1.0)),)}, []),  # which the other did not make
    ],
)
def test_what_keeps_two_audits_from_being_compared(changes, words):
    report = _report(_view("server0", _attack("inversion", 1.0, 2.0)))
    assert differences(report, msgspec.structs.replace(report, **changes)) == words
