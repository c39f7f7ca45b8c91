"""A trained split model to a bundle: one folder per party, checked against torch before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

import edge_sdk
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import EDGE, FORMAT_VERSION, Manifest, Part, bundle_id, check_target, write_bundle
from edge_sdk.errors import BackendError, ConfigError
from edge_sdk.images import decode_image, find_images, fit_image

from .checkpoint import Checkpoint, build_defense
from .cost import count_cost
from .data import cache_folder, image_folder
from .data.cifar import ARCHIVES
from .defenses import BASELINE, defense_class, model_config
from .onnx import OPSET, BatchMode, EdgeGraph, FusionGraph, to_onnx
from .recipes import check_image_size
from .shipped import RECEIVED, ShippedGraphs, TensorNames, shipped_graphs, source
from .wire import Wire, WireDtype

PARITY_IMAGES = 64
PARITY_LIMIT = 1e-3
"""Largest difference between torch and ONNX Runtime, in features and logits, that a float32 export may show."""


class ParityImages(NamedTuple):
    """uint8 ``(N, H, W, 3)`` and where they are from, for the record."""

    pixels: NDArray[np.uint8]
    source: str


def parity_images(data: str | None, image_size: int, seed: int = 0) -> ParityImages:
    """Images to compare torch and ONNX on: evenly spaced ones of a data set, else seeded uniform noise.

    Args:
        data: as for ``load_splits``; None takes a CIFAR archive that was fetched before, if there is one.
        image_size: height and width in pixels.
        seed: of the noise.

    Raises:
        ConfigError: the image size is not a multiple of 16.
        DataError: ``data`` holds no readable image.
    """
    check_image_size(image_size)
    if data is None:
        data = next((name for name, each in ARCHIVES.items() if (cache_folder() / each.file).exists()), None)
    if data is None:
        pixels = np.random.default_rng(seed).integers(0, 256, (PARITY_IMAGES, image_size, image_size, 3), np.uint8)
        return ParityImages(pixels, f"uniform noise, seed {seed}")
    folder = image_folder(data)
    found = find_images([folder])
    rows = np.linspace(0, len(found) - 1, min(PARITY_IMAGES, len(found))).round().astype(int)
    images = [fit_image(decode_image(found[row].path), image_size, image_size) for row in rows]
    return ParityImages(np.stack(images), f"{len(images)} real images of {folder.name}")


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    images: ParityImages,
    image_size: int | None = None,
    batch: BatchMode = "dynamic",
    wire_dtype: WireDtype = "float32",
    key: bytes | None = None,
    privacy: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Export, compare with torch, and write the bundle.

    Args:
        checkpoint: what to export.
        out: the bundle's folder, which must not exist, or be empty.
        images: to compare on, of the exported image size.
        image_size: height and width; the checkpoint's own by default.
        batch: ``static`` fixes batch 1 on both sides.
        wire_dtype: of the features that leave the device.
        key: of a user, by which a keyed model deals its features out; the bundle does not hold it.
        privacy: the summary of the model's audit, for the manifest.

    Returns:
        The record of the comparison, as the manifest has it.

    Raises:
        BundleError: ``out`` exists.
        ConfigError: the image size is not a multiple of 16, or not the model's only one; a key for a model that has
            no use for one.
        DataError: uint8 is asked of a checkpoint without feature ranges.
        BackendError: the exporter or ONNX Runtime refuses a part, or the float32 parity is worse than 1e-3.
    """
    check_target(out)
    size = checkpoint.image_size if image_size is None else image_size
    check_image_size(size)
    trained_for = getattr(checkpoint.config, "image_size", size)
    if size != trained_for:
        raise ConfigError(f"this model is for {trained_for}x{trained_for} images alone; {size}x{size} was asked for")
    graphs = shipped_graphs(checkpoint, wire_dtype, key)
    model, wires, edge, tails = graphs
    names = graphs.names
    files: dict[str, bytes] = {"encoder": graphs.encoder_onnx(size, batch)}
    example = torch.zeros(2 if batch == "dynamic" else 1, size, size, 3, dtype=torch.uint8)
    with torch.no_grad():
        packed = edge(example, graphs.draw_noise(example))
    for i, tail in enumerate(tails):
        files[names.tails[i]] = to_onnx(tail, (packed[i],), [names.shares[i]], [names.outputs[i]], batch)
    if model.fusion is not None:
        answers = [torch.zeros(len(example), len(checkpoint.class_names)) for _ in tails]
        received = torch.ones(len(example), len(tails))
        files["fusion"] = to_onnx(
            FusionGraph(model.fusion).eval(), (answers, received), [*names.outputs, RECEIVED], ["logits"], batch
        )
    parity = _compare(graphs, files, images, limit=PARITY_LIMIT if wire_dtype == "float32" else None)
    manifests, contents = _manifests(checkpoint, files, names, wires, size, batch, parity, privacy)
    write_bundle(out, manifests, contents)
    return parity


def _compare(
    graphs: ShippedGraphs,
    files: dict[str, bytes],
    images: ParityImages,
    limit: float | None,
) -> dict[str, Any]:
    """Largest absolute differences between torch and ONNX Runtime: features (in units as sent) and logits."""
    model, _, edge, tails = graphs
    names, features, logits = graphs.names, 0.0, 0.0
    with OnnxRuntimeBackend(files["encoder"]) as encoder, torch.no_grad():
        batch = encoder.inputs[0].shape[0] or len(images.pixels)
        backends = [OnnxRuntimeBackend(files[name]) for name in names.tails]
        fusion = OnnxRuntimeBackend(files["fusion"]) if "fusion" in files else None
        for start in range(0, len(images.pixels), batch):
            pixels = images.pixels[start : start + batch]
            drawn = graphs.draw_noise(torch.from_numpy(pixels))
            noise = {name: n.numpy() for name, n in zip(names.noises, drawn, strict=False)}
            sent = encoder.run({"image": pixels, **noise})
            expected, answers = [], {}
            for i, share in enumerate(edge(torch.from_numpy(pixels), drawn)):
                name = names.shares[i]
                features = _worse(features, share.numpy(), sent[name])
                expected.append(tails[i](share))
                answers.update(backends[i].run({name: sent[name]}))
                logits = _worse(logits, expected[i].numpy(), answers[names.outputs[i]])
            if fusion is not None:
                received = np.ones((len(pixels), len(tails)), np.float32)
                fused = fusion.run({**answers, RECEIVED: received})["logits"]
                logits = _worse(logits, model.fuse(expected).numpy(), fused)
    record = {
        "images": images.source,
        "num_images": len(images.pixels),
        "max_abs_difference": {"features": features, "logits": logits},
        "limit": limit,
        "between": "torch and ONNX Runtime on the CPU",
    }
    worst = float(np.maximum(features, logits))
    if not np.isfinite(worst) or (limit is not None and worst > limit):
        raise BackendError(
            f"the exported model differs from torch by {worst:.2e}, more than {limit or np.inf:g}; nothing was "
            "written. Report it with the model's settings"
        )
    return record


def _worse(sofar: float, a: NDArray[Any], b: NDArray[Any]) -> float:
    """The larger of a difference and that of two arrays; NaN stays NaN."""
    return float(np.maximum(sofar, np.abs(a.astype(np.float64) - b.astype(np.float64)).max()))


def _manifests(
    checkpoint: Checkpoint,
    files: dict[str, bytes],
    names: TensorNames,
    wires: Sequence[Wire],
    size: int,
    batch: BatchMode,
    parity: dict[str, Any],
    privacy: dict[str, Any] | None,
) -> tuple[dict[str, Manifest], dict[str, dict[str, bytes]]]:
    config = {key: getattr(checkpoint.config, key) for key in checkpoint.config.__dataclass_fields__}
    export = {
        "edgesdk": edge_sdk.__version__,
        "torch": str(torch.__version__),
        "opset": OPSET,
        "image_size": size,
        "batch": batch,
        "wire": [{"dtype": w.dtype, **({"low": w.low, "high": w.high} if w.dtype == "uint8" else {})} for w in wires],
    }
    identity = bundle_id(files, {"defense": checkpoint.defense, "config": config, "export": export})
    common = {"format_version": FORMAT_VERSION, "bundle_id": identity, "defense": checkpoint.defense}
    encoder = _part("encoder", EDGE, files["encoder"], "encoder.onnx")
    local = [_part(name, f"server{i}", files[name], f"{name}.onnx") for i, name in enumerate(names.tails)]
    remote = [Part(part.name, part.placement, part.inputs, part.outputs) for part in local]
    contents = {EDGE: {"encoder.onnx": files["encoder"]}}
    fusion = []
    if "fusion" in files:
        contents[EDGE]["fusion.onnx"] = files["fusion"]
        fusion = [_part("fusion", EDGE, files["fusion"], "fusion.onnx")]
    reference = None
    if checkpoint.defense != BASELINE:
        contents[EDGE]["reference.onnx"] = _undefended_encoder(checkpoint, size, batch)
        reference = _part("reference", EDGE, contents[EDGE]["reference.onnx"], "reference.onnx")
    manifests = {
        EDGE: Manifest(
            **common,
            party=EDGE,
            parts=(encoder, *remote, *fusion),
            privacy=privacy,
            config=config,
            labels=checkpoint.class_names,
            preprocessing={
                "input": f"uint8 RGB (N, {size}, {size}, 3); centred crop and bicubic resize before it",
                "in_graph": "x / 255, then (x - mean) / std per channel",
                "mean": list(checkpoint.config.mean),
                "std": list(checkpoint.config.std),
            },
            provenance={
                "paper": defense_class(checkpoint.defense).paper,
                "training": checkpoint.training,
                "data": checkpoint.data,
                "export": export,
                "parity": parity,
            },
            accuracy=_accuracy(checkpoint) if size == checkpoint.image_size else {},
            wire_bytes=sum(spec.bytes_per_sample for spec in encoder.outputs),
            reference=reference,
        ),
    }
    for part in local:
        manifests[part.placement] = Manifest(**common, party=part.placement, parts=(part,))
        contents[part.placement] = {part.file or "": files[part.name]}
    return manifests, contents


def _accuracy(checkpoint: Checkpoint) -> dict[str, Any]:
    """As recorded at training; says nothing of another image size."""
    on = f"the torch checkpoint in float32, {checkpoint.data.get('name')}, top-1"
    return {**checkpoint.accuracy, "measured_on": on}


def _undefended_encoder(checkpoint: Checkpoint, size: int, batch: BatchMode) -> bytes:
    """The undefended encoder at its default cut, untrained (seed 0): only its cost is compared."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shared = {"backbone": checkpoint.config.backbone, "num_classes": checkpoint.config.num_classes}
        model = build_defense(BASELINE, model_config(BASELINE, **shared)).eval()
    example = torch.zeros(2 if batch == "dynamic" else 1, size, size, 3, dtype=torch.uint8)
    return to_onnx(EdgeGraph(model, [Wire("float32")]).eval(), (example,), ["image"], ["features"], batch)


def _part(name: str, placement: str, content: bytes, file: str) -> Part:
    with OnnxRuntimeBackend(content) as backend:
        inputs = (msgspec.structs.replace(spec, source=source(spec.name)) for spec in backend.inputs)
        return Part(name, placement, tuple(inputs), backend.outputs, file, count_cost(content))
