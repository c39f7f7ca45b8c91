"""``edgesdk build``: TensorRT engines of a party's parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .execution import SERVER_BATCH, Precision, PrecisionOption

if TYPE_CHECKING:
    from ..engine.cache import CachedEngine


MOST_WORKSPACE = 1 << 20
"""MiB, more than any GPU has."""


def build(
    party: Path = typer.Argument(..., help="BUNDLE/edge, or BUNDLE/server0."),
    precision: PrecisionOption = Precision.FP32,
    max_batch: int | None = typer.Option(
        None, min=1, help="Largest batch [default: 1 for edge, as run takes; 8 for a server, as serve takes]."
    ),
    workspace: int | None = typer.Option(None, min=1, max=MOST_WORKSPACE, help="MiB of GPU memory to try layers with."),
    target: list[str] = typer.Option(
        [], help="Build for this GPU, such as sm_89, without one here, by TensorRT for RTX; may be repeated."
    ),
    out: Path | None = typer.Option(
        None, help="Folder for the engines; default: the cache, where run finds this GPU's."
    ),
    layers: bool = typer.Option(False, help="Print every layer."),
    json_file: str | None = typer.Option(
        None, "--json", help="Write the engines' records here; - for standard output."
    ),
) -> None:
    """Build TensorRT engines for the GPU of this machine, or with --target for others.

    An engine runs on the GPU model and TensorRT version that it was built for. Those for a Jetson are built on it.
    """
    import msgspec

    from ..bundle import EDGE, open_party
    from ..engine.build import EngineOptions
    from ..engine.cache import cached_engine
    from ..engine.gpu import Gpu
    from ..engine.library import LibraryName, load_library
    from ..progress import track
    from .tables import check_json_target, write_json

    check_json_target(json_file)
    bundle = open_party(party)
    own = [part for part in bundle.manifest.parts if part.file is not None]
    common = EngineOptions(
        max_batch=max_batch or (1 if bundle.manifest.party == EDGE else SERVER_BATCH),
        workspace_bytes=None if workspace is None else workspace << 20,
        targets=tuple(target),
    )
    name: LibraryName = "tensorrt_rtx" if target else "tensorrt"
    library = load_library(name)
    gpu = None if target else Gpu.here()
    models = {part.name: bundle.onnx(part, precision.value) for part in own}
    engines: dict[str, CachedEngine] = {}
    for part in track(own, len(own), "building"):
        options = msgspec.structs.replace(common, precision=part.runs_in(precision.value))
        engines[part.name] = cached_engine(part.name, models[part.name], options, name, library.version, gpu, out)
    if json_file is not None:
        write_json(json_file, {part: {"path": str(each.path), "record": each.record} for part, each in engines.items()})
    if json_file != "-":
        _print(engines, layers)


def _print(engines: dict[str, CachedEngine], layers: bool) -> None:
    from .tables import print_table

    first = next(iter(engines.values())).record
    where = ", ".join(first.options.targets) or (first.gpu.name if first.gpu else "")
    print_table(
        f"{first.library} {first.version}, batch 1 to {first.options.max_batch}, for {where}",
        ["part", "precision", "layers", "engine bytes", "", "file"],
        [
            [
                part,
                each.record.options.precision,
                str(len(each.record.layers)),
                f"{len(each.content):,}",
                "kept" if each.found else "built",
                each.path.name,
            ]
            for part, each in engines.items()
        ],
    )
    for part, each in engines.items():
        if layers:
            print_table(
                f"{part}: layers as TensorRT read them, before it fuses them",
                ["layer", "kind", "output", "dtype", "ONNX node"],
                [
                    [
                        layer.name,
                        layer.kind,
                        "x".join("N" if size is None else str(size) for size in layer.shape),
                        layer.dtype,
                        layer.onnx_node,
                    ]
                    for layer in each.record.layers
                ],
            )
    typer.echo(f"in {next(iter(engines.values())).path.parent}")
