"""``edgesdk triton``: a server's folder of a bundle as a model repository of Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from ..errors import needs_extra
from .execution import SERVER_BATCH, BatchWindow, MaxBatch, MaxWait, MaxWaiting, Precision, PrecisionOption


def triton(
    folder: Path = typer.Argument(..., help="BUNDLE/server0."),
    out: Path = typer.Option(..., help="The repository: a new folder."),
    device: Literal["cpu", "gpu"] = typer.Option("cpu", help="What Triton's ONNX Runtime runs the tail on."),
    tensorrt: bool = typer.Option(False, "--tensorrt", help="On a GPU: let ONNX Runtime hand the tail to TensorRT."),
    precision: PrecisionOption = Precision.FP32,
    max_batch: MaxBatch = SERVER_BATCH,
    batch_window_ms: BatchWindow = 0.0,
    max_waiting: MaxWaiting = 256,
    max_wait_ms: MaxWait = None,
) -> None:
    """Write a tail as a model repository of NVIDIA's Triton, which then serves it in place of ``edgesdk serve``.

    Devices ask it as they ask ours. The server's image needs Triton's ONNX Runtime backend.
    """
    with needs_extra("deploy", "edgesdk triton"):
        from cloud.triton import TritonOptions, write_repository
    from cloud.batcher import Batching

    from ..bundle import open_party

    if tensorrt and device == "cpu":
        raise typer.BadParameter("--tensorrt needs --device gpu")
    batching = Batching(max_batch, batch_window_ms / 1e3, max_waiting, max_wait_ms and max_wait_ms / 1e3)
    model = write_repository(
        open_party(folder, "server"), out, TritonOptions(device, tensorrt, precision.value, batching)
    )
    typer.echo(f"{model}: serve it with  tritonserver --model-repository={out.resolve()}")
