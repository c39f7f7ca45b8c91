"""Profiles as tables: one, or several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import typer

from ..errors import DataError
from ..profile.caveats import caveats
from ..profile.conditions import Conditions
from ..profile.encoder import PartProfile, ProfileReport, named_parts
from ..profile.included import latency_holds
from ..profile.layer_rows import are_fused, bytes_note, layer_rows
from ..profile.machine import ran_on
from ..profile.power import rail_label
from ..profile.stats import STEADY
from .tables import print_table

STATISTICS = (
    ("mean", "mean_ms"), ("std", "std_ms"), ("min", "min_ms"), ("p90", "p90_ms"), ("p95", "p95_ms"), ("p99", "p99_ms"),
    ("max", "max_ms"),
)  # fmt: skip


def print_profile(report: ProfileReport, layers: bool, until_stable: bool = False) -> None:
    """Of everything that the device runs, and what the undefended encoder costs beside it.

    Args:
        report: to print.
        layers: each of the encoder's too.
        until_stable: steady medians were asked for.
    """
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
        row("latency median, ms", [f"{p.latency.p50_ms:.3f}" for p in each], ratio.latency_p50 if ratio else None),
        row("- 95 % interval", [f"{p.latency.p50_low_ms:.3f} to {p.latency.p50_high_ms:.3f}" for p in each]),
        *(row(f"latency {name}, ms", [f"{getattr(p.latency, field):.3f}" for p in each]) for name, field in STATISTICS),
        row("coefficient of variation", [f"{p.latency.variation:.1%}" for p in each]),
        row("first run, ms", [f"{p.first_run_ms:.3f}" for p in each]),
        row("throughput, images/s", [f"{p.throughput:,.0f}" for p in each]),
        *(row(f"{label}, mJ a run (above idle)", [_energy(p, rail) for p in each]) for rail, label in _rails(report)),
    ]  # fmt: skip
    latency = report.encoder.latency
    print_table(
        f"{report.defense}, batch {report.batch}: {latency.num_samples} runs after {latency.num_warmup} of warm-up, "
        f"in turns\n{report.backend} in {report.precision} on {ran_on(report.machine, report.accelerator)}\n"
        f"{latency_holds(report)}",
        header,
        rows,
    )
    if report.encoder.gpu:
        _print_gpu_steps(parts)
    for line in caveats(report):
        typer.echo(f"edgesdk: warning: {line}", err=True)
    for name, at in (("before", report.begin), ("after", report.end)):
        if told := _conditions(at):
            typer.echo(f"{name}: {told}")
    unknown = [name for name, part in parts if until_stable and not part.latency.steady]
    if unknown:
        typer.echo(
            f"edgesdk: warning: after {latency.num_samples} runs the median of {', '.join(unknown)} is still not known "
            f"to {STEADY:.0%} either way; lock the clocks, or end what else runs",
            err=True,
        )
    if layers:
        _print_layers(report)


def _conditions(at: Conditions) -> str:
    """On one line; empty where the machine tells nothing."""
    clocks = (("GPU", at.gpu_mhz), ("CPU", at.cpu_mhz))
    told = [f"power mode {at.power_mode}"] if at.power_mode else []
    told += [f"{name} {mhz[0]} MHz ({mhz[1]} to {mhz[2]})" for name, mhz in clocks if mhz]
    told += [f"memory at most {at.memory_cap_mhz} MHz"] if at.memory_cap_mhz else []
    told += [f"hottest {max(at.temperatures_c.values()):.1f} C"] if at.temperatures_c else []
    return ", ".join(told)


def _print_gpu_steps(parts: Sequence[tuple[str, PartProfile]]) -> None:
    """By trtexec's names: enqueue on the host; copies and layers between CUDA events."""
    shown = (("median", "p50_ms"), *STATISTICS)
    rows = [
        [name, step.removesuffix("_ms"), *(f"{getattr(times, field):.3f}" for _, field in shown)]
        for name, part in parts
        for step, times in part.gpu.items()
    ]
    print_table("on the GPU, step by step, ms", ["part", "step", *(name for name, _ in shown)], rows)


def _rails(report: ProfileReport) -> list[tuple[str, str]]:
    energy = report.encoder.energy
    return [(rail, rail_label(rail, energy.total_rail)) for rail in energy.run_mj] if energy else []


def _energy(part: PartProfile, rail: str) -> str:
    return f"{part.energy.run_mj[rail]:.2f} ({part.energy.above_idle_mj[rail]:.2f})" if part.energy else ""


def _print_layers(report: ProfileReport) -> None:
    part = report.encoder
    fused = are_fused(part, report.precision)
    rows = [row for row in layer_rows(part, report.batch, report.precision) if row.flops or (fused and row.ms)]
    total = part.cost.flops * report.batch
    title = "encoder, layers with FLOPs"
    if part.gpu:
        title = "encoder, the engine's layers"
    elif fused:
        title = "encoder, ONNX Runtime's fused layers, by its names; of nodes that no name tells there is no time"
    elif part.layer_ms:
        title += "; ms without fusing layers"
    print_table(
        f"{title}\n{bytes_note(report.precision)}",
        ["layer", "operator", "output", "MFLOP", "share", "parameters", "bytes", "ms"],
        [
            [
                row.name,
                row.op,
                row.output,
                f"{row.flops / 1e6:.4f}" if row.op else "",
                f"{row.flops / total:.1%}" if row.op and total else "",
                f"{row.num_params:,}" if row.op else "",
                f"{row.bytes:,}" if row.op else "",
                "" if row.ms is None else f"{row.ms:.3f}",
            ]
            for row in rows
        ],
    )


def _under(report: ProfileReport) -> str:
    """What two reports must have in common for their ratio to be of the models."""
    threads = f" by {report.num_threads} threads" if report.num_threads else ""
    mode = f", power mode {report.begin.power_mode}" if report.begin.power_mode else ""
    limits = report.begin.gpu_mhz[1:] if report.begin.gpu_mhz else None
    clocks = f", GPU at {limits[0]} to {limits[1]} MHz" if limits else ""
    memory = f", memory at most {report.begin.memory_cap_mhz} MHz" if report.begin.memory_cap_mhz else ""
    machine = ran_on(report.machine, report.accelerator)
    return f"{report.backend}{threads}, batch {report.batch}, on {machine}{mode}{clocks}{memory}"


def load_report(path: Path) -> ProfileReport:
    """A report that ``profile --json`` wrote.

    Raises:
        DataError: there is none in this file.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected a report of edgesdk profile --json")
    try:
        report = msgspec.json.decode(path.read_bytes(), type=ProfileReport)
        if not report.encoder.latency.p50_ms > 0:
            raise msgspec.ValidationError(f"a median of {report.encoder.latency.p50_ms} ms")
        return report
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no report of edgesdk profile --json ({error})") from error


def print_comparison(reports: Sequence[tuple[Path, ProfileReport]]) -> None:
    """Device sides beside each other, all parts of each added up; ratios are against the first."""
    sides = [[report.encoder, *report.after] for _, report in reports]
    medians = [sum(part.latency.p50_ms for part in side) for side in sides]
    rows = [
        [
            str(path),
            f"{report.defense}, {report.precision}, batch {report.batch}",
            " + ".join(["encoder", *(part.name for part in report.after)]),
            f"{sum(part.cost.flops for part in side) / 1e6:.3f}",
            f"{report.encoder.wire_bytes:,}",
            f"{median:.3f}",
            f"{sum(part.latency.p50_low_ms for part in side):.3f} to "
            f"{sum(part.latency.p50_high_ms for part in side):.3f}",
            f"{median / medians[0]:.3f}",
        ]
        for (path, report), side, median in zip(reports, sides, medians, strict=True)
    ]
    machines = dict.fromkeys(_under(report) for _, report in reports)
    note = "" if len(machines) == 1 else "\nNOT THE SAME MACHINE, MODE, BATCH OR SOFTWARE: the ratio is of all together"
    print_table(
        "\n".join(machines) + note + "\nmeasured at different times: profile both in one bundle for a ratio in turns\n"
        "medians of the device's parts, and the bounds of their 95 % intervals, are added up",
        ["report", "", "parts", "MFLOP", "wire bytes", "median, ms", "95 % interval, ms", "to the first"],
        rows,
    )
