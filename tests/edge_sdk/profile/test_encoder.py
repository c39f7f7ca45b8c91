import itertools
import json
import re
import sys
from html import unescape

import msgspec
import pytest
from msgspec.structs import replace

from edge_sdk import apart
from edge_sdk.apart import run_apart
from edge_sdk.bundle import open_party
from edge_sdk.cli import profile_tables
from edge_sdk.cli.profile_tables import print_profile
from edge_sdk.noise import draw_noise
from edge_sdk.profile import encoder, power
from edge_sdk.profile import energy as energies
from edge_sdk.profile.caveats import caveats
from edge_sdk.profile.conditions import Extremes
from edge_sdk.profile.encoder import ProfileReport, profile_edge
from edge_sdk.profile.energy import PartEnergy
from edge_sdk.profile.included import latency_holds
from edge_sdk.profile.layer_rows import layer_rows
from edge_sdk.profile.memory import peak_memory_bytes
from edge_sdk.profile.report import write_html
from export.parity import parity_images
from export.write_bundle import export_bundle

from ...conftest import assert_one_line_error, edgesdk_here


@pytest.fixture(scope="module")
def report(bundle):
    return profile_edge(bundle / "edge", runs=30, warmup=2)


def test_every_layer_is_timed_under_its_onnx_name(report, bundle):
    heavy = {layer.name for layer in report.encoder.cost.layers if layer.flops}
    assert heavy <= set(report.encoder.layer_ms)
    assert all(took >= 0 for took in report.encoder.layer_ms.values())
    assert report.undefended.layer_ms
    assert open_party(bundle / "edge").manifest.bundle_id == report.bundle_id


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_in_a_lower_precision_the_layers_are_those_of_the_fused_graph_that_ran(bundle, tmp_path, precision):
    """Without fusing nothing runs in 8 bits."""
    done = edgesdk_here("profile", bundle / "edge", "--runs", "3", "--precision", precision, "--html",
                        tmp_path / "p.html", "--json", tmp_path / "p.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = msgspec.json.decode((tmp_path / "p.json").read_bytes(), type=ProfileReport)
    for part in (report.encoder, report.undefended):
        assert part.layer_ms
        assert set(part.layer_ms) - {layer.name for layer in part.cost.layers}  # names of ONNX Runtime's own
    rows = layer_rows(report.encoder, 1, precision)
    assert any(row.flops and row.ms for row in rows)
    assert sum(row.flops for row in rows) == report.encoder.cost.flops
    assert sum(row.ms or 0 for row in rows) == pytest.approx(sum(report.encoder.layer_ms.values()))
    assert "ms without fusing" not in done.stdout
    assert "ONNX Runtime's fused layers, by its names" in " ".join(done.stdout.split())
    nameless = next(row.name for row in rows if not row.op)
    line = next(line for line in done.stdout.splitlines() if f"│ {nameless} " in line)
    assert not any(cell.strip() for cell in line.split("│")[2:8])  # its cost is not known, and no 0
    page = (tmp_path / "p.html").read_text()
    assert page.count("<svg") == 2  # the roofs of a CPU are float32's
    assert "As ONNX Runtime fused them" in page
    assert "No roofline" in page


def test_what_lies_in_the_current_folder_is_not_run(bundle, tmp_path, monkeypatch):
    (tmp_path / "msgspec.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(tmp_path)
    assert peak_memory_bytes((bundle / "edge" / "encoder.onnx").read_bytes(), 1, None) > 0


def test_memory_that_cannot_be_measured_costs_the_report_nothing_else(bundle, monkeypatch):
    monkeypatch.setattr(apart, "run_apart", lambda *_, **__: run_apart("os:abort"))
    with pytest.warns(UserWarning, match="no peak memory: the process that measures memory failed"):
        report = profile_edge(bundle / "edge", runs=2, warmup=0)
    assert report.encoder.peak_memory_bytes is None
    assert report.encoder.latency.num_samples == 2


def test_loading_and_the_first_run_stand_apart(report):
    assert report.encoder.load_ms > 0
    assert report.encoder.first_run_ms > 0
    assert report.encoder.latency.num_samples == len(report.encoder.samples_ms) == 30
    assert report.encoder.throughput == pytest.approx(30 / sum(report.encoder.samples_ms) * 1e3)
    assert report.encoder.energy is None  # no power monitor here


def test_energy_of_a_run_comes_from_the_rails(bundle, tmp_path, monkeypatch):
    for name in ("SETTLE_S", "RISE_S", "IDLE_S"):
        monkeypatch.setattr(energies, name, 0.05)
    monkeypatch.setattr(energies, "ENERGY_S", 0.3)
    line = "RAM 519/7607MB VDD_IN 5000mW/5000mW VDD_SOC 2000mW/2000mW"
    command = (sys.executable, "-uc", f"import time; print({line!r}); time.sleep(60)")
    monkeypatch.setattr(energies, "power_source", lambda: power.power_source(tmp_path, command))
    report = profile_edge(bundle / "edge", runs=3, warmup=0)
    energy = report.encoder.energy
    assert energy.num_runs >= 1
    assert energy.total_rail == "VDD_IN"
    assert energy.mean_mw["VDD_SOC"] == energy.idle_mw["VDD_SOC"] == pytest.approx(2000)
    assert energy.seconds >= 0.3
    assert energy.num_samples >= 2
    assert energy.during.num_samples >= 2
    # 5 W for 0.3 s, and what the last run and the sampler take after it.
    assert 0.99 * 1500 <= energy.run_mj["VDD_IN"] * energy.num_runs <= 3 * 1500
    assert energy.above_idle_mj["VDD_IN"] == pytest.approx(0, abs=1e-6)
    write_html(report, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert "VDD_SOC, mJ a run (above idle)" in page
    assert "VDD_IN (whole module), mJ a run (above idle)" in page


@pytest.mark.parametrize(("times", "expected"), [((1.0, 1.0), 50), ((1.0, 2.0), 120)])
def test_until_stable_stops_where_the_medians_are_known_or_at_the_cap(bundle, monkeypatch, capsys, times, expected):
    """Two parts are run in turns, so that each of them sees both times."""
    done, taken = [], itertools.cycle([times[0], times[0], times[1], times[1]])
    monkeypatch.setattr(encoder, "run_ms", lambda *arguments: next(taken))
    report = profile_edge(
        bundle / "edge", runs=120, warmup=3, until_stable=True, progress=lambda i, total: done.append((i, total))
    )
    assert report.encoder.latency.num_samples == len(done) == expected
    assert report.encoder.latency.num_warmup == 3
    print_profile(report, layers=False, until_stable=True)
    told = "after 120 runs the median of encoder, undefended is still not known to 2% either way"
    assert (told in " ".join(capsys.readouterr().err.split())) == (expected == 120)


def test_the_time_of_a_run_has_the_drawing_of_its_noise(make_checkpoint, tmp_path, monkeypatch):
    export_bundle(make_checkpoint("gaussian"), tmp_path / "b", images=parity_images(None, 32))
    drawn = []
    monkeypatch.setattr(encoder, "draw_noise", lambda specs, batch: drawn.append(batch) or draw_noise(specs, batch))
    report = profile_edge(tmp_path / "b" / "edge", batch=2, runs=5, warmup=1)
    assert drawn == [2] * 7  # the first run, the warm-up, and those timed; nothing of the undefended encoder's
    assert report.wire_dtype == "FP32"
    assert report.encoder.layer_ms
    assert (report.encoder.draws_noise, report.undefended.draws_noise) == (True, False)
    assert "the drawing of noise included (encoder); decoding an image" in latency_holds(report)


@pytest.mark.parametrize(
    ("backend", "held"),
    [
        ("onnxruntime", "from arrays in memory to arrays in memory; no noise is drawn; decoding an image and the"),
        ("onnxruntime-cuda", "copies to the GPU and back included; no CUDA graph; no noise"),
        ("tensorrt", "no CUDA graph, and no spin-wait asked for: CUDA chooses how to wait; no noise"),
    ],
)
def test_what_a_latency_holds_stands_in_table_and_page(report, backend, held, tmp_path, capsys):
    told = replace(report, backend=backend)
    print_profile(told, layers=False)
    write_html(told, tmp_path / "p.html")
    table, page = capsys.readouterr().out, unescape((tmp_path / "p.html").read_text())
    assert all(held in " ".join(text.split()) for text in (table, page))
    assert "latency median, ms" in table  # trtexec's names
    assert "throughput, images/s" in table


@pytest.mark.parametrize("wire_dtype", ["float16", "uint8"])
def test_both_encoders_send_in_the_same_dtype(make_checkpoint, tmp_path, wire_dtype):
    """What rounding saves is no merit of the defense."""
    checkpoint = make_checkpoint("siftfunnel")
    ratios = []
    for name in ("float32", wire_dtype):
        export_bundle(checkpoint, tmp_path / name, images=parity_images(None, 32), wire_dtype=name)
        report = profile_edge(tmp_path / name / "edge", runs=1, warmup=0)
        assert report.wire_dtype == {"float32": "FP32", "float16": "FP16", "uint8": "UINT8"}[name]
        ratios.append(report.ratio.wire_bytes)
    assert ratios[0] == ratios[1]


def test_a_report_is_written_before_it_is_printed(bundle, tmp_path, monkeypatch):
    def gone(*_):
        raise BrokenPipeError

    monkeypatch.setattr(profile_tables, "print_table", gone)
    paths = tmp_path / "p.json", tmp_path / "p.html"
    with pytest.raises(BrokenPipeError):
        edgesdk_here("profile", bundle / "edge", "--runs", "2", "--json", paths[0], "--html", paths[1])
    assert all(path.stat().st_size > 1000 for path in paths)


def test_a_batch_of_another_size_is_refused_before_anything_is_loaded(make_checkpoint, tmp_path, monkeypatch):
    export_bundle(make_checkpoint("none"), tmp_path / "b", images=parity_images(None, 32), batch="static")
    monkeypatch.setattr(encoder, "open_backend", None)
    assert_one_line_error(
        edgesdk_here("profile", tmp_path / "b/edge", "--batch", "4"), "exported for batch 1, 4 was asked for"
    )


def test_the_page_needs_nothing_else(report, tmp_path):
    write_html(report, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert page.count("<svg") == 3
    assert f"{report.encoder.latency.p50_ms:.3f} ms" in page
    assert "tells neither clocks nor temperatures" in page or "MHz" in page or "°C" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "<script" not in page


def test_what_makes_figures_doubtful_stands_in_table_and_page(report, tmp_path, capsys):
    fell, calm = Extremes(9, 510, None, {}, ["VDD_IN"]), Extremes(9, 1020, None, {}, [])
    begin = replace(report.begin, gpu_mhz=(1020, 1020, 1020), over_current={"oc2": 5})
    power = {"VDD_IN": 1.0}
    energy = PartEnergy(1, 0.3, 9, "VDD_IN", power, power, power, power, fell)
    steady = replace(report.encoder, latency=replace(report.encoder.latency, mean_ms=1.0, std_ms=0.01))
    assert not caveats(replace(report, begin=begin, encoder=steady, undefended=None, during=calm))
    part = replace(steady, latency=replace(steady.latency, mean_ms=1.0, std_ms=0.03), energy=energy)
    doubtful = replace(
        report, begin=begin, end=replace(begin, over_current={"oc2": 12}), during=fell, encoder=part, undefended=None
    )
    lines = caveats(doubtful)
    expected = ("timings of encoder", "oc2 was met 7", "fell to 510", "on VDD_IN", "energy of encoder",
                "energy of encoder was measured, over current on VDD_IN")  # fmt: skip
    assert [told for line, told in zip(lines, expected, strict=True) if told not in line] == []
    print_profile(doubtful, layers=False)
    write_html(doubtful, tmp_path / "p.html")
    warned, page = capsys.readouterr().err, unescape((tmp_path / "p.html").read_text())
    assert all(line in warned and line in page for line in lines)


def test_reports_are_compared_with_the_first(bundle, tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, more in zip(paths, ([], ["--precision", "fp16"]), strict=True):
        done = edgesdk_here("profile", bundle / "edge", "--runs", "5", "--json", path, *more)
        assert done.returncode == 0, done.stderr
    table = edgesdk_here("profile", "--compare", *paths)
    assert table.returncode == 0
    assert "fp32, batch 1" in table.stdout
    assert "fp16, batch 1" in table.stdout
    assert "NOT THE SAME MACHINE" not in table.stdout
    other = json.loads(paths[1].read_text())
    other["machine"]["processor"] = "another"
    paths[1].write_text(json.dumps(other))
    assert "NOT THE SAME MACHINE" in edgesdk_here("profile", "--compare", *paths).stdout
    other["encoder"]["latency"]["p50_ms"] = 0
    paths[1].write_text(json.dumps(other))
    assert_one_line_error(edgesdk_here("profile", "--compare", *paths), "no report", "a median of 0")
    paths[1].write_text("{}")
    assert_one_line_error(edgesdk_here("profile", "--compare", *paths), "no report of edgesdk profile --json")


def test_a_comparison_counts_all_that_the_device_runs(bundle, shares_bundle, tmp_path):
    """The fusion, too, of a defense that has one: as the ratio in a report does."""
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, each in zip(paths, (bundle, shares_bundle), strict=True):
        assert edgesdk_here("profile", each / "edge", "--runs", "5", "--json", path).returncode == 0
    single, shared = (json.loads(path.read_text()) for path in paths)
    (fusion,) = shared["after"]
    parts = [shared["encoder"], fusion]
    median = sum(part["latency"]["p50_ms"] for part in parts)
    undefended = shared["undefended"]["latency"]["p50_ms"]
    assert shared["ratio"]["latency_p50"] == pytest.approx(undefended / median)
    low, high = (sum(part["latency"][f"p50_{side}_ms"] for part in parts) for side in ("low", "high"))
    flops = sum(part["cost"]["flops"] for part in parts)
    row = next(line for line in edgesdk_here("profile", "--compare", *paths).stdout.splitlines() if "b.json" in line)
    cells = [cell.strip() for cell in row.split("│")[2:-1]]
    assert cells[1:3] == ["encoder + fusion", f"{flops / 1e6:.3f}"]
    assert cells[4:6] == [f"{median:.3f}", f"{low:.3f} to {high:.3f}"]
    assert cells[6] == f"{median / single['encoder']['latency']['p50_ms']:.3f}"


MEASURING = ("--backend tensorrt", "--backend onnxruntime", "--until-stable", "--runs 5", "--threads 1", "--warmup 20",
             "--no-layers")  # fmt: skip
OF_ONE_REPORT = ("--batch 2", "--html x", "--json x", "--precision fp16", "--power-mode 5W")


@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "b"],
        ["a", "--html", "x", "--device", "nano"],
        ["a", "--html", "-"],
        ["--compare"],
        ["a", "--html", "x", "--compare"],
        ["a", "--compare", "--json", "x"],
        ["a", "b", "--compare", "--json", "x"],
        ["a", "b", "--html", "x", "--compare"],
        *(
            f"{given} {ignored}".split()
            for given in ("a --device nano", "a b --compare", "--device list")
            for ignored in MEASURING
        ),
        *(f"a b --compare {ignored}".split() for ignored in ("--device nano", *OF_ONE_REPORT)),
        *(f"--device list {ignored}".split() for ignored in OF_ONE_REPORT),
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments):
    """None is accepted and ignored."""
    done = edgesdk_here("profile", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_comparison_is_of_two_reports(bundle):
    for paths in ([], ["a.json"]):
        done = edgesdk_here("profile", "--compare", *paths)
        assert (done.returncode, "--compare needs two reports" in done.stderr) == (2, True)
    assert_one_line_error(edgesdk_here("profile", "--compare", bundle / "edge", "b"), "is a folder; expected a report")
