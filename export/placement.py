"""The placement graph of an export, and all of it run in one process: to compare, and to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import torch

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import EDGE, Part, PartyBundle, Precision
from edge_sdk.tensors import Array

from .cost import count_cost
from .onnx import BatchMode, FusionGraph, to_onnx
from .shipped import RECEIVED, ShippedGraphs, TensorNames, source

ENCODER, FUSION, REFERENCE = "encoder", "fusion", "reference"


def onnx_files(graphs: ShippedGraphs, image_size: int, batch: BatchMode) -> dict[str, bytes]:
    """Encoder, tails and the fusion if there is one, in float32, by part.

    Args:
        graphs: of the model.
        image_size: height and width.
        batch: ``static`` fixes batch 1.

    Raises:
        BackendError: the exporter refuses a part.
    """
    names = graphs.names
    files = {ENCODER: graphs.encoder_onnx(image_size, batch)}
    example = torch.zeros(2 if batch == "dynamic" else 1, image_size, image_size, 3, dtype=torch.uint8)
    with torch.no_grad():
        packed = graphs.edge(example, graphs.draw_noise(example))
        answers = [tail(share) for tail, share in zip(graphs.tails, packed, strict=True)]
    for i, tail in enumerate(graphs.tails):
        files[names.tails[i]] = to_onnx(tail, (packed[i],), [names.shares[i]], [names.outputs[i]], batch)
    if graphs.model.fusion is not None:
        received = torch.ones(len(example), len(answers))
        files[FUSION] = to_onnx(
            FusionGraph(graphs.model.fusion).eval(), (answers, received), [*names.outputs, RECEIVED], ["logits"], batch
        )
    return files


def placement_graph(files: Mapping[str, bytes], names: TensorNames) -> tuple[Part, ...]:
    """Encoder, one tail for each server, and the fusion if there is one, in the order they run, with their costs.

    Args:
        files: ONNX by part.
        names: of the tensors that join them.
    """
    tails = (read_part(tail, f"server{i}", files[tail]) for i, tail in enumerate(names.tails))
    fusion = [read_part(FUSION, EDGE, files[FUSION])] if FUSION in files else []
    return (read_part(ENCODER, EDGE, files[ENCODER]), *tails, *fusion)


def read_part(name: str, placement: str, onnx: bytes) -> Part:
    """One part as its graph states it: inputs and where they come from, outputs, cost."""
    with OnnxRuntimeBackend(onnx) as backend:
        inputs = (msgspec.structs.replace(spec, source=source(spec.name)) for spec in backend.inputs)
        return Part(name, placement, tuple(inputs), backend.outputs, f"{name}.onnx", count_cost(onnx))


class Chain:
    """All parts in one process, as no deployment has them.

    Args:
        parts: in the order they run.
        files: ONNX by part.
        num_threads: that an operator may use; None lets ONNX Runtime choose.

    Raises:
        BackendError: ONNX Runtime refuses a part.
    """

    def __init__(self, parts: Sequence[Part], files: Mapping[str, bytes], num_threads: int | None = None) -> None:
        self._steps = [(part, OnnxRuntimeBackend(files[part.name], num_threads)) for part in parts]
        self.batch = parts[0].inputs[0].shape[0]
        """Images a run, where the graph fixes them."""
        self.answer = parts[-1].outputs[0].name
        """The tensor of the logits."""

    @classmethod
    def of_bundle(
        cls, folders: Sequence[PartyBundle], precision: Precision = "fp32", num_threads: int | None = None
    ) -> Chain:
        """The parts of all parties' folders, the edge's first, in this precision.

        Raises:
            BundleError: a folder was not exported in it.
            BackendError: ONNX Runtime refuses a part.
        """
        files = {part.name: each.onnx(part, precision) for each in folders for part in each.manifest.parts if part.file}
        return cls(folders[0].manifest.parts, files, num_threads)

    def run(self, pixels: Array, noise: Mapping[str, Array]) -> dict[str, Array]:
        """Every tensor of the graph, by name, where all servers answer.

        Args:
            pixels: uint8 ``(N, H, W, 3)``.
            noise: the encoder's inputs that the device draws, by name.

        Raises:
            BackendError: ONNX Runtime fails.
        """
        known: dict[str, Array] = {"image": pixels, **noise}
        for part, backend in self._steps:
            for spec in part.inputs:
                if spec.source == "received":
                    known[spec.name] = np.ones((len(pixels), *(size or 0 for size in spec.shape[1:])), np.float32)
            known |= backend.run({spec.name: known[spec.name] for spec in part.inputs})
        return known
