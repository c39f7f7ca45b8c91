"""The tables of servers beside each other, from numbers whose ratios are known by hand."""

import importlib

import pytest

from ..conftest import ROOT


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("serving_report")


@pytest.fixture
def serving(report):
    """Three rounds: of raw's 100, 200 and 100 rows a second we answer a half, a peer a quarter, and then a tenth."""

    def measured(*rates):
        return {c: [report.Measured(rate, 100 / rate, 400 / rate) for rate in rates] for c in (1, 8, 32)}

    return report.Serving(
        model="tiny",
        seconds=4,
        raw={1: [100.0, 40.0, 100.0], 8: [60.0, 200.0, 90.0]},  # the best of each round counts
        found={"edgesdk": measured(50, 100, 50), "echo": measured(400, 400, 400), "peer": measured(25, 50, 10)},
        ready={"edgesdk": [1.0, 1.0, 3.0], "echo": [0.5] * 3, "peer": [4.0, 2.0, 4.0]},
        idle={"edgesdk": [100.0] * 3, "echo": [50.0] * 3, "peer": [400.0, 200.0, 200.0]},
        busy={"edgesdk": 120.0, "echo": 50.0, "peer": 500.0},
        versions={"edgesdk": "edgesdk 1", "echo": "uvicorn 2", "peer": "peer 3"},
    )


def test_ours_over_a_peer_is_taken_round_by_round(report, serving):
    _, ratios = report.tables(serving)
    # 50/25, 100/50, 50/10; of latencies the inverse; of the starts 1/4, 1/2, 3/4; of the memory 1/4, 1/2, 1/2.
    rates = ["2.00 (2.00-5.00)"] * 3
    assert ratios.rows == [
        ["peer", *rates, "0.50 (0.20-0.50)", "0.50 (0.20-0.50)", "0.50 (0.25-0.75)", "0.50 (0.25-0.50)"]
    ]
    assert len(ratios.header) == len(ratios.rows[0])


def test_shares_of_raw_are_of_the_same_round(report, serving):
    servers, _ = report.tables(serving)
    ours, echo, peer = servers.rows
    assert ours[:4] == ["edgesdk", *["50 (0.50; 0.50-0.50)"] * 3]
    assert peer[1] == "25 (0.25; 0.10-0.25)"
    assert ours[4:] == ["2.000", "8.0, 8.0, 8.0", "1.00", "100, 120"]
    assert echo[0] == "echo"
    assert "raw is 100 rows/s (100-200; 100 at batch 1, 90 at batch 8)" in servers.title


def test_small_shares_keep_two_digits(report, serving):
    servers, _ = report.tables(serving._replace(raw={1: [50_000.0] * 3}))
    assert servers.rows[0][1] == "50 (0.001; 0.001-0.002)"
    assert servers.rows[2][1] == "25 (0.0005; 0.0002-0.001)"


def test_the_markdown_has_all_of_it(report, serving):
    text = report.as_markdown(serving)
    assert "| edgesdk over | req/s at 1 | req/s at 8 | req/s at 32 | p50 at 1 | p99 at 32 |" in text
    assert "| peer | 2.00 (2.00-5.00) |" in text
    assert text.endswith("edgesdk: edgesdk 1; echo: uvicorn 2; peer: peer 3.\n")
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        assert len({line.count("|") for line in lines}) == 1
