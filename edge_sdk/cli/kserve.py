"""``edgesdk kserve``: a server's folder of a bundle as a manifest for KServe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from ..errors import needs_extra
from .execution import BackendOption, Precision, PrecisionOption


def kserve(
    folder: Path = typer.Argument(..., help="BUNDLE/server0."),
    storage_uri: str = typer.Option(..., help="Where KServe fetches it from: s3://…, gs://…, pvc://…"),
    runtime: Literal["triton", "edgesdk"] = typer.Option(
        "triton", help="KServe's Triton, over what edgesdk triton wrote; or an image with edgesdk, over this folder."
    ),
    image: str | None = typer.Option(None, help="The image with edgesdk[cloud]; for --runtime edgesdk."),
    namespace: str | None = typer.Option(None, help="Default: one of its own for each server, edgesdk-server0."),
    gpus: int = typer.Option(0, min=0, help="For each replica."),
    min_replicas: int = typer.Option(1, min=1, help="Kept running without load."),
    max_replicas: int = typer.Option(3, min=1, help="At most."),
    backend: BackendOption = "onnxruntime",
    precision: PrecisionOption = Precision.FP32,
    out: Path | None = typer.Option(None, help="A new file; default: standard output."),
) -> None:
    """Write the InferenceService of one server's part, for kubectl apply.

    Each server of a bundle has a manifest of its own, for a namespace or cluster of its own: never two parts together.
    """
    with needs_extra("deploy", "edgesdk kserve"):
        from cloud.kserve import KServeOptions, inference_service, to_yaml
    from ..bundle import open_party
    from ..errors import ConfigError
    from ..files import write_aside

    if (runtime == "edgesdk") != (image is not None):
        raise typer.BadParameter("--runtime edgesdk needs --image, and triton has one of its own")
    if max_replicas < min_replicas:
        raise typer.BadParameter("--max-replicas is less than --min-replicas")
    on_gpu = backend != "onnxruntime"
    if runtime == "triton" and (on_gpu or precision is not Precision.FP32):
        raise typer.BadParameter("--backend and --precision are for --runtime edgesdk; edgesdk triton takes Triton's")
    if runtime == "edgesdk" and on_gpu != bool(gpus):
        raise typer.BadParameter(f"--gpus {gpus} with --backend {backend}: one of them needs the other")
    options = KServeOptions(
        runtime, storage_uri, image, namespace, gpus, min_replicas, max_replicas, backend, precision.value
    )
    text = to_yaml(inference_service(open_party(folder, "server"), options))
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists():
        raise ConfigError(f"{out}: exists already; choose another --out, or remove it first")
    write_aside(out, text.encode())
