"""8-bit integers by calibration on images, and float32 where 8 bits would change the answers.

Weights by channel and activations by tensor are quantised symmetrically around zero and written as explicit Q/DQ nodes,
as TensorRT wants them (developer guide, section on explicit quantization). Funnels have features with rare values far
from all others, which 256 steps cannot express: the layers whose quantisation alone changes most answers on the
calibration images stay in float32, one after the other, until the answers agree [ours].
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sdk.bundle import INT8_OPERATORS, Part
from edge_sdk.errors import BackendError, needs_extra
from edge_sdk.progress import track
from edge_sdk.tensors import Array

from .onnx import checked_onnx
from .placement import FUSION, REFERENCE, Chain
from .shipped import ShippedGraphs

CALIBRATION_IMAGES = 256
BATCH = 16
AGREEMENT = 0.99
"""Share of the calibration images that must get the answer of the float32 model."""

Feeds = list[dict[str, NDArray[Any]]]


class Quantized(NamedTuple):
    """Parts by name, and the layers ``PART/NODE`` that stayed in float32."""

    files: dict[str, bytes]
    kept: list[str]


def quantize(
    graphs: ShippedGraphs, parts: Sequence[Part], files: Mapping[str, bytes], pixels: NDArray[np.uint8]
) -> Quantized:
    """Encoder, tails and the undefended encoder in int8; the fusion stays as it is.

    Args:
        graphs: the torch side.
        parts: of the placement graph.
        files: ONNX by part, in float32.
        pixels: uint8 ``(N, H, W, 3)``, to calibrate on: training images.

    Raises:
        BackendError: ONNX Runtime's quantiser refuses a part.
    """
    calibration = _Calibration(graphs, parts, files, pixels)
    own = {part: _Quantizable(files[part], feeds) for part, feeds in calibration.feeds.items()}
    found = {part: each.quantized(()) for part, each in own.items()}
    if calibration.agreement(found) >= AGREEMENT:
        return Quantized(found, [])
    layers = [(part, node) for part, each in own.items() if part != REFERENCE for node in each.nodes]
    alone = {
        (part, node): calibration.agreement({part: own[part].quantized(set(own[part].nodes) - {node})})
        for part, node in track(layers, len(layers), "which layers bear 8 bits")
    }
    kept: dict[str, set[str]] = {part: set() for part in own}
    for part, node in sorted(layers, key=lambda layer: alone[layer]):
        kept[part].add(node)
        found[part] = own[part].quantized(kept[part])
        if calibration.agreement(found) >= AGREEMENT:
            break
    return Quantized(found, sorted(f"{part}/{node}" for part, nodes in kept.items() for node in nodes))


def calibration_images(training: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Some of the training images ``(N, H, W, 3)``, from all over: a folder's are sorted by class."""
    return training[:: max(len(training) // CALIBRATION_IMAGES, 1)][:CALIBRATION_IMAGES]


class _Calibration:
    """The whole model on the calibration images: what each part is fed with, and what comes out."""

    def __init__(
        self, graphs: ShippedGraphs, parts: Sequence[Part], files: Mapping[str, bytes], pixels: NDArray[np.uint8]
    ) -> None:
        self._parts, self._files = parts, dict(files)
        chain = Chain(parts, files)
        batch = chain.batch or min(BATCH, len(pixels))
        self.feeds: dict[str, Feeds] = {part: [] for part in files if part != FUSION}
        self._inputs: list[tuple[Array, dict[str, Array]]] = []
        expected = []
        for start in range(0, len(pixels) - batch + 1, batch):
            images = pixels[start : start + batch]
            noise = graphs.named(graphs.draw_noise(torch.from_numpy(images)))
            self._inputs.append((images, noise))
            known = chain.run(images, noise)
            expected.append(known[chain.answer].argmax(1))
            for part in parts:
                if part.name != FUSION:
                    self.feeds[part.name].append({spec.name: known[spec.name] for spec in part.inputs})
            if REFERENCE in self.feeds:
                self.feeds[REFERENCE].append({"image": images})
        self._expected = np.concatenate(expected)

    def agreement(self, changed: Mapping[str, bytes]) -> float:
        """Share of the images with the same answer as in float32, with these files instead."""
        chain = Chain(self._parts, {**self._files, **changed})
        answers = [chain.run(images, noise)[chain.answer].argmax(1) for images, noise in self._inputs]
        return float((np.concatenate(answers) == self._expected).mean())


class _Quantizable:
    """One ONNX file with what it is calibrated on; ``nodes`` are those that can be quantised."""

    def __init__(self, model: bytes, feeds: Feeds) -> None:
        with needs_extra("export", "an int8 export"):
            import onnx
            from onnxruntime.quantization.shape_inference import quant_pre_process

        self._feeds = feeds
        with tempfile.TemporaryDirectory() as name:
            plain, folded = Path(name) / "plain.onnx", Path(name) / "folded.onnx"
            plain.write_bytes(model)
            _refused(partial(quant_pre_process, str(plain), str(folded), skip_symbolic_shape=True))
            self._model = folded.read_bytes()
        graph = onnx.load_from_string(self._model).graph
        self.nodes = [node.name for node in graph.node if node.op_type in INT8_OPERATORS]

    def quantized(self, but: Collection[str]) -> bytes:
        """All nodes in int8 but these."""
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        if set(but) >= set(self.nodes):
            return self._model
        with tempfile.TemporaryDirectory() as name:
            plain, quantized = Path(name) / "plain.onnx", Path(name) / "int8.onnx"
            plain.write_bytes(self._model)
            _refused(
                partial(
                    quantize_static,
                    str(plain),
                    str(quantized),
                    _reader(self._feeds),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=list(INT8_OPERATORS),
                    nodes_to_exclude=list(but),
                    per_channel=True,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                    extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
                )
            )
            return checked_onnx(onnx.load(quantized))


def _reader(feeds: Sequence[Mapping[str, NDArray[Any]]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Mapping[str, NDArray[Any]]] = iter(feeds)

        def get_next(self) -> Any:
            return next(self._left, None)

    return Reader()


def _refused(work: Any) -> None:
    try:
        work()
    except Exception as error:  # the quantiser raises classes without a common base
        raise BackendError(f"ONNX Runtime's quantiser refuses the model: {error}") from error
