"""``edgesdk export``: a trained model to a bundle."""

from __future__ import annotations

import warnings
from enum import Enum
from pathlib import Path

import typer

from ..errors import ConfigError, LeakageError, needs_extra

SHORTEST_KEY = 16


class Batch(str, Enum):
    """Whether the batch axis of the ONNX files is open."""

    STATIC = "static"
    DYNAMIC = "dynamic"


class LowPrecision(str, Enum):
    """What the graphs are written in, beside float32."""

    FP16 = "fp16"
    INT8 = "int8"


class WireDtype(str, Enum):
    """What the features travel as."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    UINT8 = "uint8"


def export(
    defense: str = typer.Option(
        ...,
        help="none, siftfunnel, privdfs or fsinfoguard, which are shipped; with --checkpoint, that of the training.",
    ),
    backbone: str | None = typer.Option(
        None, help="Network that is cut; cnn is shipped. [default: cnn, or the checkpoint's]"
    ),
    checkpoint: Path | None = typer.Option(None, help="model.safetensors of a training; default: the shipped model."),
    out: Path | None = typer.Option(None, help="Folder of the bundle, not there yet. [default: DEFENSE-BACKBONE]"),
    image_size: int | None = typer.Option(None, min=16, help="A multiple of 16; default: the one of the training."),
    batch: Batch = typer.Option(Batch.DYNAMIC, help="static fixes batch 1."),
    wire_dtype: WireDtype = typer.Option(WireDtype.FLOAT32, help="What the features travel as."),
    precision: list[LowPrecision] = typer.Option(
        [],
        help="Write the graphs in it too, beside float32; may be repeated. int8 is calibrated on images of --data.",
    ),
    key_file: Path | None = typer.Option(None, help="A user's secret, 16 bytes or more, for a model trained for keys."),
    max_psnr: float | None = typer.Option(None, help="Refuse where an attack of the audit rebuilt images better, dB."),
    max_fsinfo: float | None = typer.Option(
        None, help="Refuse where the audit's FSInfo is more, nats a dimension, or the model adds no Gaussian noise."
    ),
    audit: list[Path] = typer.Option(
        [],
        help="audit.json of the model, one for each precision; may be repeated. [default: the one beside its weights, "
        "if it is there]",
    ),
    data: str | None = typer.Option(None, help="Images to compare torch and ONNX on, as for train; else noise."),
) -> None:
    """Export a trained model as a bundle: a folder for the device, and one for each server.

    The ONNX files are compared with torch over 64 images; a float32 export that differs by more than 1e-3 is refused.
    """
    from ..bundle import check_target

    with needs_extra("export", "edgesdk export"):
        from export.audit.gate import audit_summary
        from export.audit.results import AUDIT_FILE
        from export.checkpoint import load_checkpoint
        from export.data import load_splits
        from export.parity import parity_images
        from export.quantize import calibration_images
        from export.write_bundle import export_bundle
        from export.zoo import zoo_model
    key = _read_key(key_file) if key_file else None
    weights = checkpoint or zoo_model(defense, backbone or "cnn")
    source = load_checkpoint(weights)
    backbone = backbone or source.config.backbone
    source.require(defense, backbone)
    target = out or Path(f"{defense}-{backbone}")
    check_target(target)
    size = image_size or source.image_size
    privacy = audit_summary(
        source,
        audit or [weights.with_name(AUDIT_FILE)],
        wire_dtype.value,
        size,
        precisions=["fp32", *(each.value for each in precision)],
        max_psnr_db=max_psnr,
        max_fsinfo=max_fsinfo,
        named=bool(audit),
    )
    images, calibration = parity_images(data, size), None
    if LowPrecision.INT8 in precision and data is not None:
        splits = load_splits(data, size, source.data.get("seed", 0))
        if splits.record() != source.data:
            if max_psnr is not None or max_fsinfo is not None:
                raise LeakageError(
                    f"{data}: not what this model was trained on, with which its audit calibrated int8; an encoder "
                    "calibrated on other images was not audited; nothing was exported"
                )
            warnings.warn(
                f"{data}: not what this model was trained on; int8 is calibrated on it all the same, and its accuracy "
                "on any of these images says nothing",
                stacklevel=2,
            )
        calibration = calibration_images(splits.train.pixels)
    typer.echo(f"exporting {defense} ({backbone}) …", err=True)
    parity = export_bundle(
        source,
        target,
        images=images,
        image_size=image_size,
        batch=batch.value,
        wire_dtype=wire_dtype.value,
        key=key,
        privacy=privacy,
        precisions=[each.value for each in dict.fromkeys(precision)],
        calibration=calibration,
    )
    worst = max(parity["fp32"]["max_abs_difference"].values())
    typer.echo(f"{target}: ONNX and torch differ by {worst:.1e} at most over {parity['fp32']['images']}")
    for each in dict.fromkeys(precision):
        kept = ", ".join(parity[each.value].get("kept_in_fp32", []))
        note = f"; in float32, because 8 bits change answers there: {kept}" if kept else ""
        typer.echo(f"{each.value}: the same answer as torch for {parity[each.value]['same_answer']:.1%} of them{note}")


def _read_key(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) < SHORTEST_KEY:
        raise ConfigError(
            f"{path}: a key needs at least {SHORTEST_KEY} random bytes, this has {len(key)}; "
            f"head -c 32 /dev/urandom > {path} makes one"
        )
    return key
