"""``edgesdk profile``: what the encoder costs on this device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .execution import BackendOption, Precision, Threads

if TYPE_CHECKING:
    from ..profile.encoder import PartProfile, ProfileReport


def profile(
    edge: Path | None = typer.Argument(None, help="BUNDLE/edge."),
    batch: int = typer.Option(1, min=1, help="Images a run."),
    runs: int = typer.Option(200, min=1, help="Timed runs."),
    warmup: int = typer.Option(20, min=0, help="Runs before that, not counted."),
    backend: BackendOption = "onnxruntime",
    precision: Precision | None = typer.Option(
        None, help="That the bundle was exported in [default: fp32]; of --device's engine [default: every one]."
    ),
    threads: Threads = None,
    layers: bool = typer.Option(True, help="Print the layers that hold FLOPs."),
    device: str | None = typer.Option(
        None, help="Estimate for this Jetson instead of measuring here; all for all of them, list to list them."
    ),
    power_mode: str | None = typer.Option(None, help="Of --device; default: its highest."),
    json_file: str | None = typer.Option(None, "--json", help="Write the whole report here; - for standard output."),
) -> None:
    """Measure the encoder beside the undefended one: FLOPs, parameters, bytes, latency, memory.

    1 multiply-accumulate is 2 FLOPs, counted in convolutions and matrix products. Costs are counted from the graph;
    latency and memory are measured here; with --device latency is estimated, and nothing is run.
    """
    from ..backends import Execution
    from ..profile.encoder import profile_edge
    from ..progress import bar
    from .estimate import estimate, list_devices, print_estimate
    from .tables import check_json_target, write_json

    if device == "list":
        list_devices()
        return
    if edge is None:
        raise typer.BadParameter("BUNDLE/edge is needed", param_hint="EDGE")
    check_json_target(json_file)
    if device is None and power_mode:
        raise typer.BadParameter("for an estimate alone: add --device", param_hint="--power-mode")
    if device is not None:
        estimated = estimate(edge, device, power_mode, precision.value if precision else None)
        if json_file != "-":
            print_estimate(estimated)
        if json_file is not None:
            write_json(json_file, estimated)
        return
    execution = Execution(backend, precision.value if precision else "fp32", threads)
    with bar("profiling") as advance:
        report = profile_edge(edge, batch=batch, runs=runs, warmup=warmup, execution=execution, progress=advance)
    if json_file != "-":
        _print(report, layers)
    if json_file is not None:
        write_json(json_file, report)


def _print(report: ProfileReport, layers: bool) -> None:
    from .tables import print_table

    each: list[PartProfile] = [report.encoder, *report.after, *([report.undefended] if report.undefended else [])]
    ratio = report.ratio
    names = ["encoder", *(part.name for part in report.after), *(["undefended"] if report.undefended else [])]
    header = ["", *names, *([f"undefended / {' + '.join(names[:-1])}"] if ratio else [])]

    def row(name: str, texts: list[str], quotient: float | None = None) -> list[str]:
        return [name, *texts, *([f"{quotient:.2f}" if quotient else ""] if ratio else [])]

    rows = [
        row("MFLOP an image", [f"{p.cost.flops / 1e6:.3f}" for p in each], ratio.flops if ratio else None),
        row("other operations, M", [f"{p.cost.other_ops / 1e6:.3f}" for p in each]),
        row("parameters", [f"{p.cost.num_params:,}" for p in each], ratio.num_params if ratio else None),
        row("weight bytes", [f"{p.cost.weight_bytes:,}" for p in each]),
        row("wire bytes an image", ["" if p in report.after else f"{p.wire_bytes:,}" for p in each],
            ratio.wire_bytes if ratio else None),
        *(row(f"- to {party}", [f"{size:,}", *[""] * (len(each) - 1)])
          for party, size in report.wire_bytes_by_server.items() if len(report.wire_bytes_by_server) > 1),
        row("peak memory, MB", ["unknown" if p.peak_memory_bytes is None else f"{p.peak_memory_bytes / 1e6:.1f}"
                                for p in each]),
        row("latency p50, ms", [f"{p.latency.p50_ms:.3f}" for p in each], ratio.latency_p50 if ratio else None),
    ]  # fmt: skip
    rows += [
        row(f"latency {name}, ms", [f"{getattr(p.latency, f'{name}_ms'):.3f}" for p in each])
        for name in ("mean", "std", "min", "p90", "p95", "p99")
    ]
    latency = report.encoder.latency
    print_table(
        f"{report.defense}, batch {report.batch}: {latency.num_samples} runs after {latency.num_warmup} of warm-up, "
        f"in turns\n{report.backend} in {report.precision} on {report.machine}",
        header,
        rows,
    )
    if layers:
        heavy = [layer for layer in report.encoder.cost.layers if layer.flops]
        total = report.encoder.cost.flops
        print_table(
            "encoder, layers with FLOPs",
            ["layer", "operator", "output", "MFLOP", "share", "parameters"],
            [
                [
                    layer.name,
                    layer.op,
                    "x".join(str(size) for size in layer.output_shape[1:]),
                    f"{layer.flops / 1e6:.4f}",
                    f"{layer.flops / total:.1%}",
                    f"{layer.num_params:,}",
                ]
                for layer in heavy
            ],
        )
