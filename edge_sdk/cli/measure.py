"""``edgesdk measure``: end to end over real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .execution import BackendOption, Precision, PrecisionOption, Threads
from .servers import (
    CaFile,
    Certificate,
    Colocated,
    Key,
    Missing,
    Server,
    ServersFile,
    Timeout,
    TokenFile,
    addresses,
    credentials,
)

if TYPE_CHECKING:
    from ..profile.end_to_end import MeasureReport


def measure(
    edge: Path = typer.Argument(..., help="BUNDLE/edge."),
    data: Path = typer.Option(..., help="Images: a folder, with CLASS/ sub-folders for accuracy, or one file."),
    server: Server = None,
    servers_file: ServersFile = None,
    n: int | None = typer.Option(None, "--n", min=1, help="Images, evenly spaced over the folder; default: all."),
    backend: BackendOption = "onnxruntime",
    precision: PrecisionOption = Precision.FP32,
    threads: Threads = None,
    timeout: Timeout = 10.0,
    on_missing: Missing = "fail",
    allow_colocated: Colocated = False,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    certificate: Certificate = None,
    key: Key = None,
    as_json: bool = typer.Option(False, "--json", help="The report as JSON."),
) -> None:
    """Classify images end to end, one at a time, and break each request's time down to its steps."""
    from ..backends import Execution
    from ..profile.end_to_end import measure as run_measure
    from ..progress import bar
    from .tables import write_json

    urls = addresses(server, servers_file)
    with bar("measuring") as advance:
        report = run_measure(
            edge,
            urls,
            data,
            num_images=n,
            execution=Execution(backend, precision.value, threads),
            timeout_s=timeout,
            on_missing=on_missing,
            allow_colocated=allow_colocated,
            credentials=credentials(len(urls), token_file, ca_file, certificate, key),
            progress=advance,
        )
    if as_json:
        write_json("-", report)
    else:
        print_report(report)


def print_report(report: MeasureReport) -> None:
    """The report as a table."""
    from ..profile.machine import ran_on
    from .tables import print_table

    accuracy = "not known: the folders name no class of the bundle"
    if report.accuracy is not None:
        accuracy = f"{report.accuracy:.2%} of {report.num_labelled} labelled images"
    steps = {**report.steps, "total": report.total}
    rows = []
    for name, stats in steps.items():
        if stats is None:
            rows.append([name, *["not reported"] + [""] * 5])
            continue
        share = stats.mean_ms / report.total.mean_ms
        rows.append([name, *(f"{getattr(stats, f'{k}_ms'):.3f}" for k in ("p50", "p90", "p95", "p99", "mean")),
                     f"{share:.0%}"])  # fmt: skip
    degraded = f"; {report.num_degraded} answers degraded" if report.num_degraded else ""
    print_table(
        f"{report.defense}: {report.num_images} images of {report.data}, one at a time{degraded}\n"
        f"accuracy {accuracy}; {report.feature_bytes_per_image:,} bytes of features an image; "
        f"{report.images_per_second:.0f} images/s\n{report.backend} in {report.precision} on "
        f"{ran_on(report.machine, report.accelerator)}",
        ["step, ms", "p50", "p90", "p95", "p99", "mean", "share"],
        rows,
    )
    if len(report.servers) > 1:
        print_table(
            "each server",
            ["server", "address", "bytes an image", "answers", "missing", "round trip p50, ms", "tail p50, ms"],
            [
                [
                    party,
                    each.url,
                    f"{each.feature_bytes_per_image:,}",
                    str(each.num_answers),
                    str(each.num_missing),
                    *("" if stats is None else f"{stats.p50_ms:.3f}" for stats in (each.round_trip, each.tail)),
                ]
                for party, each in report.servers.items()
            ],
        )
