"""A trained split model to a bundle: one folder per party, checked against torch before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

import edge_sdk
from edge_sdk.bundle import EDGE, FORMAT_VERSION, Manifest, Part, Variant, bundle_id, check_target, write_bundle
from edge_sdk.errors import ConfigError

from .checkpoint import Checkpoint, build_defense
from .cost import weight_bytes
from .defenses import BASELINE, SplitModel, defense_class, model_config
from .defenses.base import Normalize, Standardize
from .onnx import OPSET, BatchMode, EdgeGraph, to_onnx
from .parity import ParityImages, compare
from .placement import REFERENCE, onnx_files, placement_graph, read_part
from .precision import LowPrecision, lowered
from .recipes import check_image_size
from .shipped import keyed_modules, shipped_graphs
from .wire import Wire, WireDtype

PARITY_LIMIT = 1e-3
"""Largest difference between torch and ONNX Runtime, in features and logits, that a float32 export may show."""


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
    precisions: Sequence[LowPrecision] = (),
    calibration: NDArray[np.uint8] | None = None,
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
        precisions: lower ones, in which encoder and tails are written too; the fusion stays in float32.
        calibration: uint8 ``(N, H, W, 3)``, training images of the exported size, whose ranges int8 is made for.

    Returns:
        The records of the comparisons by precision, as the manifest has them.

    Raises:
        BundleError: ``out`` exists.
        ConfigError: the image size is not a multiple of 16, or not the model's only one; a key for a model that has
            no use for one, or none for one that has; int8 without calibration images.
        DataError: uint8 is asked of a checkpoint without feature ranges.
        BackendError: the exporter or ONNX Runtime refuses a part, or the float32 parity is worse than 1e-3.
    """
    check_target(out)
    size = checkpoint.image_size if image_size is None else image_size
    check_image_size(size)
    trained_for = _only_size(checkpoint) or size
    if size != trained_for:
        raise ConfigError(f"this model is for {trained_for}x{trained_for} images alone; {size}x{size} was asked for")
    graphs = shipped_graphs(checkpoint, wire_dtype, key)
    if key is None and keyed_modules(graphs.model):
        raise ConfigError(
            "this model was trained for keys; give a user's by --key-file, or all would have one partition"
        )
    files = onnx_files(graphs, size, batch)
    if checkpoint.defense != BASELINE:
        files[REFERENCE] = _undefended_encoder(checkpoint, size, batch, wire_dtype)
    parts = placement_graph(files, graphs.names)
    parity = {"fp32": compare(graphs, parts, files, images, PARITY_LIMIT if wire_dtype == "float32" else None)}
    variants: dict[str, dict[str, bytes]] = {}
    for precision in precisions:
        variants[precision], kept = lowered(graphs, parts, files, precision, calibration)
        record = compare(graphs, parts, {**files, **variants[precision]}, images, None)
        parity[precision] = {**record, "kept_in_fp32": kept} if precision == "int8" else record
    if REFERENCE in files:
        parts += (read_part(REFERENCE, EDGE, files[REFERENCE]),)
    parts = tuple(
        msgspec.structs.replace(
            part,
            variants={p: _variant(part, p, found[part.name]) for p, found in variants.items() if part.name in found},
        )
        for part in parts
    )
    contents: dict[str, dict[str, bytes]] = {part.placement: {} for part in parts}
    for part in parts:
        contents[part.placement][f"{part.name}.onnx"] = files[part.name]
        contents[part.placement] |= {variant.file: variants[p][part.name] for p, variant in part.variants.items()}
    export = {
        "edgesdk": edge_sdk.__version__,
        "torch": str(torch.__version__),
        "opset": OPSET,
        "image_size": size,
        "batch": batch,
        "wire": [
            {"dtype": w.dtype, **({"low": w.low, "high": w.high} if w.dtype == "uint8" else {})} for w in graphs.wires
        ],
    }
    write_bundle(out, _manifests(checkpoint, graphs.model, parts, contents, export, parity, privacy), contents)
    return parity


def _manifests(
    checkpoint: Checkpoint,
    model: SplitModel,
    parts: Sequence[Part],
    contents: dict[str, dict[str, bytes]],
    export: dict[str, Any],
    parity: dict[str, Any],
    privacy: dict[str, Any] | None,
) -> dict[str, Manifest]:
    """What each party is told: the device of all parts, though only of the files of its own, a server of its part."""
    config = {key: getattr(checkpoint.config, key) for key in checkpoint.config.__dataclass_fields__}
    every = {file: content for own in contents.values() for file, content in own.items()}
    identity = bundle_id(every, {"defense": checkpoint.defense, "config": config, "export": export})
    common = {"format_version": FORMAT_VERSION, "bundle_id": identity, "defense": checkpoint.defense}
    size = export["image_size"]
    first = next(layer for layer in model.edge.modules() if isinstance(layer, (Normalize, Standardize)))
    by_data = isinstance(first, Normalize)
    edge = Manifest(
        **common,
        party=EDGE,
        parts=tuple(p if p.placement == EDGE else _elsewhere(p) for p in parts if p.name != REFERENCE),
        privacy=privacy,
        config=config,
        labels=checkpoint.class_names,
        preprocessing={
            "input": f"uint8 RGB (N, {size}, {size}, 3); centred crop and bicubic resize before it",
            "in_graph": f"x / 255, then {first.formula}",
            **({"mean": list(checkpoint.config.mean), "std": list(checkpoint.config.std)} if by_data else {}),
        },
        provenance={
            "paper": defense_class(checkpoint.defense).paper,
            "training": checkpoint.training,
            "data": checkpoint.data,
            "export": export,
            "parity": parity,
        },
        accuracy=_accuracy(checkpoint) if size == checkpoint.image_size else {},
        wire_bytes=sum(spec.bytes_per_sample for spec in parts[0].outputs),
        reference=next((part for part in parts if part.name == REFERENCE), None),
    )
    servers = (Manifest(**common, party=p.placement, parts=(p,)) for p in parts if p.placement != EDGE)
    return {EDGE: edge, **{server.party: server for server in servers}}


def _only_size(checkpoint: Checkpoint) -> int | None:
    """Height and width that the model is for alone; None where it takes any.

    Masks have an entry for each feature of one size, and noise was calibrated to what one size's features tell.
    """
    if defense_class(checkpoint.defense).calibrated:
        return checkpoint.image_size
    return getattr(checkpoint.config, "image_size", None)


def _variant(part: Part, precision: str, content: bytes) -> Variant:
    return Variant(f"{part.name}.{precision}.onnx", weight_bytes(onnx.load_from_string(content).graph))


def _elsewhere(part: Part) -> Part:
    """A part as those know it who do not run it."""
    return Part(part.name, part.placement, part.inputs, part.outputs)


def _accuracy(checkpoint: Checkpoint) -> dict[str, Any]:
    """As recorded at training; says nothing of another image size."""
    on = f"the torch checkpoint in float32, {checkpoint.data.get('name')}, top-1"
    return {**checkpoint.accuracy, "measured_on": on}


def _undefended_encoder(checkpoint: Checkpoint, size: int, batch: BatchMode, wire_dtype: WireDtype) -> bytes:
    """The undefended encoder at its default cut, untrained (seed 0): only its cost is compared.

    Its features travel in the same dtype: what rounding saves is no merit of a defense.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shared = {"backbone": checkpoint.config.backbone, "num_classes": checkpoint.config.num_classes}
        model = build_defense(BASELINE, model_config(BASELINE, **shared)).eval()
    example = torch.zeros(2 if batch == "dynamic" else 1, size, size, 3, dtype=torch.uint8)
    return to_onnx(EdgeGraph(model, [Wire(wire_dtype)]).eval(), (example,), ["image"], ["features"], batch)
