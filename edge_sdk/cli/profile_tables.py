"""Profiles as tables: one, or several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import typer

from ..errors import DataError
from ..profile.encoder import PartProfile, ProfileReport, named_parts
from ..profile.stats import UNSTEADY
from .tables import print_table

STATISTICS = (
    ("mean", "mean_ms"), ("std", "std_ms"), ("min", "min_ms"), ("p90", "p90_ms"), ("p95", "p95_ms"), ("p99", "p99_ms"),
    ("max", "max_ms"),
)  # fmt: skip


def print_profile(report: ProfileReport, layers: bool) -> None:
    """Of everything that the device runs, and what the undefended encoder costs beside it."""
    parts, ratio = named_parts(report), report.ratio
    names, each = [name for name, _ in parts], [part for _, part in parts]
    header = ["", *names, *([f"undefended / {' + '.join(names[: 1 + len(report.after)])}"] if ratio else [])]

    def row(name: str, texts: list[str], quotient: float | None = None) -> list[str]:
        return [name, *texts, *([f"{quotient:.2f}" if quotient else ""] if ratio else [])]

    rows = [
        row("MFLOP an image", [f"{p.cost.flops / 1e6:.3f}" for p in each], ratio.flops if ratio else None),
        row("other operations, M", [f"{p.cost.other_ops / 1e6:.3f}" for p in each]),
        row("parameters", [f"{p.cost.num_params:,}" for p in each], ratio.num_params if ratio else None),
        row("weight bytes", [f"{p.weight_bytes:,}" for p in each]),
        row("wire bytes an image", ["" if p in report.after else f"{p.wire_bytes:,}" for p in each],
            ratio.wire_bytes if ratio else None),
        *(row(f"- to {party}", [f"{size:,}", *[""] * (len(each) - 1)])
          for party, size in report.wire_bytes_by_server.items() if len(report.wire_bytes_by_server) > 1),
        row("peak memory, MB", ["unknown" if p.peak_memory_bytes is None else f"{p.peak_memory_bytes / 1e6:.1f}"
                                for p in each]),
        row("latency p50, ms", [f"{p.latency.p50_ms:.3f}" for p in each], ratio.latency_p50 if ratio else None),
        row("- 95 % interval", [f"{p.latency.p50_low_ms:.3f} to {p.latency.p50_high_ms:.3f}" for p in each]),
        *(row(f"latency {name}, ms", [f"{getattr(p.latency, field):.3f}" for p in each]) for name, field in STATISTICS),
        row("first run, ms", [f"{p.first_run_ms:.3f}" for p in each]),
        row("images a second", [f"{p.throughput:,.0f}" for p in each]),
        *(row(f"{rail}, mJ a run (above idle)", [_energy(p, rail) for p in each]) for rail in _rails(report)),
    ]  # fmt: skip
    latency = report.encoder.latency
    print_table(
        f"{report.defense}, batch {report.batch}: {latency.num_samples} runs after {latency.num_warmup} of warm-up, "
        f"in turns\n{report.backend} in {report.precision} on {report.machine}",
        header,
        rows,
    )
    if report.encoder.gpu:
        _print_gpu_steps(parts)
    unsteady = [name for name, part in parts if part.latency.variation > UNSTEADY]
    if unsteady:
        typer.echo(
            f"edgesdk: warning: the timings of {', '.join(unsteady)} vary by more than {UNSTEADY:.1%} (std / mean); "
            "lock the clocks, end what else runs, or use --until-stable",
            err=True,
        )
    if report.during.alarms:
        typer.echo(
            f"edgesdk: warning: over current on {', '.join(report.during.alarms)} during the runs: the module lowers "
            "its clocks; choose a lower power mode or a stronger supply",
            err=True,
        )
    if layers:
        _print_layers(report)


def _print_gpu_steps(parts: Sequence[tuple[str, PartProfile]]) -> None:
    """By trtexec's names: enqueue on the host; copies and layers between CUDA events."""
    shown = (("median", "p50_ms"), *STATISTICS)
    rows = [
        [name, step.removesuffix("_ms"), *(f"{getattr(times, field):.3f}" for _, field in shown)]
        for name, part in parts
        for step, times in part.gpu.items()
    ]
    print_table("on the GPU, step by step, ms", ["part", "step", *(name for name, _ in shown)], rows)


def _rails(report: ProfileReport) -> list[str]:
    return list(report.encoder.energy.run_mj) if report.encoder.energy else []


def _energy(part: PartProfile, rail: str) -> str:
    return f"{part.energy.run_mj[rail]:.2f} ({part.energy.above_idle_mj[rail]:.2f})" if part.energy else ""


def _print_layers(report: ProfileReport) -> None:
    heavy = [layer for layer in report.encoder.cost.layers if layer.flops]
    total, times = report.encoder.cost.flops, report.encoder.layer_ms
    print_table(
        "encoder, layers with FLOPs" + ("" if report.encoder.gpu else "; ms without fusing layers"),
        ["layer", "operator", "output", "MFLOP", "share", "parameters", "ms"],
        [
            [
                layer.name,
                layer.op,
                "x".join(str(size) for size in layer.output_shape[1:]),
                f"{layer.flops / 1e6:.4f}",
                f"{layer.flops / total:.1%}",
                f"{layer.num_params:,}",
                f"{times[layer.name]:.3f}" if layer.name in times else "",
            ]
            for layer in heavy
        ],
    )

    if report.encoder.gpu:
        each = [[name, f"{took:.4f}"] for name, took in times.items()]
        print_table("encoder, the engine's own layers", ["layer", "ms"], each)


def load_report(path: Path) -> ProfileReport:
    """A report that ``profile --json`` wrote.

    Raises:
        DataError: there is none in this file.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProfileReport)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no report of edgesdk profile --json ({error})") from error


def print_comparison(reports: Sequence[tuple[Path, ProfileReport]]) -> None:
    """The encoders beside each other; ratios are against the first."""
    first = reports[0][1].encoder
    rows = [
        [
            str(path),
            f"{report.defense}, {report.precision}, batch {report.batch}",
            f"{report.encoder.cost.flops / 1e6:.3f}",
            f"{report.encoder.wire_bytes:,}",
            f"{report.encoder.latency.p50_ms:.3f}",
            f"{report.encoder.latency.p50_low_ms:.3f} to {report.encoder.latency.p50_high_ms:.3f}",
            f"{report.encoder.latency.p50_ms / first.latency.p50_ms:.3f}",
        ]
        for path, report in reports
    ]
    machines = dict.fromkeys(f"{report.backend} on {report.machine}" for _, report in reports)
    note = "" if len(machines) == 1 else "\nNOT THE SAME MACHINE OR SOFTWARE: the ratio is of everything together"
    print_table(
        "\n".join(machines) + note + "\nmeasured at different times: profile both in one bundle for a ratio in turns",
        ["report", "", "MFLOP", "wire bytes", "p50, ms", "95 % interval, ms", "to the first"],
        rows,
    )
