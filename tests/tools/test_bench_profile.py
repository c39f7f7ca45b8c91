"""tools/bench_profile.py: what it compares and when it fails; how fast anything is, is no test."""

import importlib
import sys

import pytest

from export.parity import parity_images
from export.write_bundle import export_bundle

from ..conftest import ROOT


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("bench_profile")


def test_each_round_has_the_median_that_profile_reports_beside_a_bare_one(bench, shares_bundle, monkeypatch):
    reported = []

    def profile_edge(*arguments, **named):
        report = real(*arguments, **named)
        reported.append(report.encoder.latency.p50_ms)
        return report

    real = bench.profile_edge
    monkeypatch.setattr(bench, "profile_edge", profile_edge)
    monkeypatch.setattr(bench, "WARM_UP", 1)
    rounds = bench.measure(shares_bundle / "edge", 2, 5, 1)
    assert [first for first, _ in rounds] == reported[1:]
    assert len(rounds) == 2
    assert all(bare > 0 for _, bare in rounds)


def test_a_bundle_with_noise_is_refused(bench, make_checkpoint, tmp_path, monkeypatch):
    export_bundle(make_checkpoint("gaussian"), tmp_path / "b", images=parity_images(None, 32))
    monkeypatch.setattr(sys, "argv", ["bench_profile.py", str(tmp_path / "b")])
    with pytest.raises(SystemExit, match=r"bench_profile: .*noise is drawn within the time"):
        bench.main()


@pytest.mark.parametrize(
    ("rounds", "ratio"),
    [([(1.0, 1.0), (1.5, 1.0), (1.015, 1.0)], None), ([(2.0, 2.0), (2.1, 2.0), (2.2, 2.0)], "1.050"),
     ([(0.9, 1.0)], "0.900")],
)  # fmt: skip
def test_a_median_ratio_more_than_2_percent_from_1_ends_with_status_1(bench, rounds, ratio, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", lambda *arguments: rounds)
    monkeypatch.setattr(sys, "argv", ["bench_profile.py", "b"])
    if ratio is None:
        bench.main()
    else:
        with pytest.raises(SystemExit, match=rf"median is {ratio} of the bare loop's"):
            bench.main()
    assert "profile / bare loop" in capsys.readouterr().out
