"""What a profile's latencies hold, in words: the same model reads lower where copies or waiting are left out."""

from __future__ import annotations

from ..backends import BackendName
from .encoder import ProfileReport, named_parts

__all__ = ["latency_holds"]

COPIES = "copies to the GPU and back included"
ON_THE_GPU: dict[BackendName, str] = {
    "onnxruntime-cuda": f"{COPIES}; no CUDA graph",
    "onnxruntime-tensorrt": f"{COPIES}; no CUDA graph",
    "tensorrt": f"{COPIES} (where the GPU shares the CPU's memory, into shared buffers and out of them); no CUDA graph,"
    " and no spin-wait asked for: CUDA chooses how to wait",
}
"""What ``TensorRTBackend.run`` does, and ONNX Runtime's providers, whose graphs are off unless asked for."""


def latency_holds(report: ProfileReport) -> str:
    """A sentence without its full stop, of the backend and the parts that ran."""
    drawing = [name for name, part in named_parts(report) if part.draws_noise]
    noise = f"the drawing of noise included ({', '.join(drawing)})" if drawing else "no noise is drawn"
    gpu = ON_THE_GPU.get(report.backend)
    held = ["a latency is of one run, from arrays in memory to arrays in memory", *([gpu] if gpu else []), noise]
    return f"{'; '.join(held)}; decoding an image and the network are not in it"
