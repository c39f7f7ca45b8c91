"""Time by layer, from ONNX Runtime's own profiler.

Without fusing layers the names are those of the ONNX file, and the layers' sum is more than the latency of the fused
graph. What runs in a lower precision does so only fused: its layers are ONNX Runtime's own, by the names that it gives
them, in which a node's name may be left or not.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from ..backends.onnxruntime import session_options
from ..errors import BackendError
from ..tensors import Array

__all__ = ["layer_times"]

_ENDING = "_kernel_time"


def layer_times(
    onnx: bytes, feeds: Mapping[str, Array], *, fused: bool, runs: int = 30, num_threads: int | None = None
) -> dict[str, float]:
    """Median milliseconds of each layer of a run, by its name; the first run does not count.

    Args:
        onnx: the model's content.
        feeds: of one run.
        fused: the graph as ``OnnxRuntimeBackend`` runs it, by ONNX Runtime's names; else node by node, by the file's.
        runs: counted ones.
        num_threads: that an operator may use.

    Raises:
        BackendError: ONNX Runtime refuses the model.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = session_options(num_threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "layers")
        if not fused:
            # The basic level fuses too: a linear layer's MatMul and Add, by a name that the file does not have.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
            for _ in range(runs + 1):
                session.run(None, dict(feeds))
        except Exception as error:  # the library raises classes of its own with no common base
            raise BackendError(f"ONNX Runtime {onnxruntime.__version__} cannot profile the model: {error}") from error
        events: list[dict[str, Any]] = msgspec.json.decode(Path(session.end_profiling()).read_bytes())
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_ENDING):
            times[event["name"].removesuffix(_ENDING)].append(event["dur"] / 1e3)
    return {name: median(each[1:] or each) for name, each in times.items()}
