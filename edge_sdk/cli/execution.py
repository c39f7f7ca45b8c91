"""How the parts of a party are run, as ``run``, ``measure``, ``profile`` and ``serve`` take it."""

from __future__ import annotations

import math
from enum import Enum
from typing import Annotated, Literal

import typer

SERVER_BATCH = 8
"""Largest batch that a server's engine is built for, unless told."""


class Precision(str, Enum):
    """Of a part's graph."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


BackendOption = Annotated[
    Literal["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"],
    typer.Option(
        help="Library: ONNX Runtime on the CPU, or on an NVIDIA GPU by its provider for CUDA or TensorRT; or TensorRT "
        "itself, for which engines are built on first use. Where it cannot run, nothing else does instead."
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(help="Which of the exported graphs to run: fp32 is always there, the others where export wrote them."),
]
OtlpEndpoint = Annotated[
    str | None, typer.Option(help="Send OpenTelemetry traces there, by OTLP over HTTP: http://HOST:4318.")
]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads for one operator; default: all cores.")]


def finite(value: float | None) -> float | None:
    """For options that are no number of anything where they are not finite: a range lets nan through."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


BatchWindow = Annotated[
    float,
    typer.Option(
        min=0,
        callback=finite,
        help="Milliseconds that an idle model waits for more requests, to run them as one batch; 0: none.",
    ),
]
MaxWaiting = Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused (503).")]
MaxWait = Annotated[
    float | None,
    typer.Option(
        min=1,
        callback=finite,
        help="Milliseconds that a request may wait to be begun; longer: 504. [default: no limit]",
    ),
]
MaxBatch = Annotated[int, typer.Option(min=1, help="Most rows that run together.")]
