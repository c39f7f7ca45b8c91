"""``edgesdk profile``: what the encoder costs on this device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from .execution import BackendOption, Precision, Threads

MOST_RUNS = 10_000
"""Until medians are known: minutes for an encoder of milliseconds."""

MEASURING = ("backend", "layers", "runs", "threads", "until_stable", "warmup")
"""Parameters that say how to measure, or to print what was measured."""
OF_ONE_REPORT = ("batch", "html", "json_file", "power_mode", "precision")


def profile(
    context: typer.Context,
    paths: list[Path] | None = typer.Argument(None, help="BUNDLE/edge; with --compare, reports that --json wrote."),
    batch: int = typer.Option(1, min=1, help="Images a run."),
    runs: int | None = typer.Option(None, min=1, help="Timed runs [default: 200; until stable, 10000 at most]."),
    warmup: int = typer.Option(20, min=0, help="Runs before that, not counted."),
    until_stable: bool = typer.Option(False, "--until-stable", help="Stop once the medians are known to 2 %."),
    backend: BackendOption = "onnxruntime",
    precision: Precision | None = typer.Option(
        None,
        help="Which of the exported graphs to run [default: fp32]; with --device, that of the engine [default: each].",
    ),
    threads: Threads = None,
    layers: bool = typer.Option(True, help="Print the layers that hold FLOPs."),
    device: str | None = typer.Option(
        None, help="Estimate for this Jetson instead of measuring here; all for all of them, list to list them."
    ),
    power_mode: str | None = typer.Option(None, help="Of --device; default: its highest."),
    compare: bool = typer.Option(False, "--compare", help="Set reports beside each other instead of measuring."),
    json_file: str | None = typer.Option(None, "--json", help="Write the whole report here; - for standard output."),
    html: Path | None = typer.Option(None, help="Write the report as a page that needs nothing else."),
) -> None:
    """Measure the encoder beside the undefended one: FLOPs, parameters, bytes, latency, memory, energy.

    1 multiply-accumulate is 2 FLOPs, counted in convolutions and matrix products. Costs are counted from the graph;
    latency and memory are measured here, energy where there is a power monitor; with --device latency is estimated,
    and nothing is run.
    """
    from .tables import check_json_target, write_json

    if device is not None or compare:
        _refuse(context, MEASURING, "for what is measured here, not with --device or --compare")
    if compare:
        _refuse(context, ("device", *OF_ONE_REPORT), "for one report, not with --compare")
    if device == "list":
        _refuse(context, OF_ONE_REPORT, "for one report, not for the list of devices")
        from .estimate import list_devices

        list_devices()
        return
    if compare and len(paths or ()) < 2:
        raise typer.BadParameter("--compare needs two reports or more, as --json wrote them", param_hint="PATHS")
    if not paths or (len(paths) > 1 and not compare):
        raise typer.BadParameter("one BUNDLE/edge is needed", param_hint="PATHS")
    if device is None and power_mode:
        raise typer.BadParameter("for an estimate alone: add --device", param_hint="--power-mode")
    if device == "all" and power_mode:
        raise typer.BadParameter("modes differ by module: name one by --device", param_hint="--power-mode")
    if device is not None and batch != 1:
        raise typer.BadParameter("estimates are for batch 1 alone", param_hint="--batch")
    if html is not None and device is not None:
        raise typer.BadParameter("for what is measured here", param_hint="--html")
    if html is not None and str(html) == "-":
        raise typer.BadParameter("a page is a file", param_hint="--html")
    check_json_target(json_file)
    if compare:
        from .profile_tables import load_report, print_comparison

        print_comparison([(path, load_report(path)) for path in paths])
        return
    if device is not None:
        from .estimate import estimate, print_estimate

        estimated = estimate(paths[0], device, power_mode, precision.value if precision else None)
        if json_file is not None:
            write_json(json_file, estimated)
        if json_file != "-":
            print_estimate(estimated)
        return
    from ..backends import Execution
    from ..profile.encoder import profile_edge
    from ..progress import bar
    from .profile_tables import print_profile

    check_json_target(None if html is None else str(html))
    if html is not None:
        from ..page import check_installed

        check_installed()
    with bar("profiling") as advance:
        report = profile_edge(
            paths[0],
            batch=batch,
            runs=runs or (MOST_RUNS if until_stable else 200),
            warmup=warmup,
            until_stable=until_stable,
            execution=Execution(backend, precision.value if precision else "fp32", threads),
            progress=advance,
        )
    if json_file is not None:  # before anything is printed: whoever reads it may have had enough
        write_json(json_file, report)
    if html is not None:
        from ..profile.report import write_html

        write_html(report, html)
    if json_file != "-":
        print_profile(report, layers, until_stable)


def _refuse(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Parameters that would be ignored, at their default too: who gave one believes that it counts.

    Raises:
        BadParameter: one was given.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(why, param_hint=f"--{name.removesuffix('_file').replace('_', '-')}")
