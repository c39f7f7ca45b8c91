"""``edgesdk build``: TensorRT engines of a party's parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .execution import SERVER_BATCH, Precision, PrecisionOption

if TYPE_CHECKING:
    from ..bundle import Part
    from ..engine.build import EngineLayer
    from ..engine.cache import CachedEngine


MOST_WORKSPACE = 1 << 20
"""MiB, more than any GPU has."""

FIRST_LAYERS = 20
"""Of a part, whose names are printed without being asked for."""

AS_READ = "as TensorRT read them, before it fuses them"


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
    layers: bool = typer.Option(
        False, help=f"Print every layer: kind, shape, ONNX node; without, {FIRST_LAYERS} names."
    ),
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
        _print(own, engines, layers)


def _print(parts: Sequence[Part], engines: Mapping[str, CachedEngine], layers: bool) -> None:
    from .tables import print_table

    first = engines[parts[0].name]
    where = ", ".join(first.record.options.targets) or (first.record.gpu.name if first.record.gpu else "")
    rows = []
    for part in parts:
        each = engines[part.name]
        rows.append(
            [
                part.name,
                each.record.options.precision,
                _batch(part, each.record.options.max_batch),
                str(len(each.record.layers)),
                f"{len(each.content):,}",
                "kept" if each.found else "built",
                each.path.name,
            ]
        )
    title = f"{first.record.library} {first.record.version}, for {where}; in {first.path.parent}"
    print_table(title, ["part", "precision", "batch", "layers", "engine bytes", "", "file"], rows)
    for name, each in engines.items():
        if layers:
            _print_layers(name, each.record.layers)
        else:
            names = ", ".join(layer.name for layer in each.record.layers[:FIRST_LAYERS])
            left = len(each.record.layers) - FIRST_LAYERS
            more = f" and {left} more: --layers prints all" if left > 0 else ""
            typer.echo(f"{name}'s layers {AS_READ}: {names}{more}")


def _batch(part: Part, most: int) -> str:
    """That the engine takes: a graph exported for one batch takes that alone, whatever was asked for."""
    fixed = part.inputs[0].shape[0]
    if fixed is not None or most == 1:
        return str(fixed or 1)
    return f"1 to {most}"


def _print_layers(name: str, layers: Sequence[EngineLayer]) -> None:
    from .tables import print_table

    print_table(
        f"{name}'s layers {AS_READ}",
        ["layer", "kind", "output", "dtype", "ONNX node"],
        [
            [
                layer.name,
                layer.kind,
                "x".join("N" if size is None else str(size) for size in layer.shape),
                layer.dtype,
                layer.onnx_node,
            ]
            for layer in layers
        ],
    )
