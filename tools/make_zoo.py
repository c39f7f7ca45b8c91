"""Put a finished training into the zoo, with its model card.

    python tools/make_zoo.py RUN/model.safetensors --data cifar10 [--int8-tails]

The zoo keeps matrices and kernels as float16, half the size, with --int8-tails those of the servers as int8 with a
scale for each output channel; the accuracies that the card states are measured with them so rounded, and computed in
float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from marked_table import markdown
from torch import Tensor

from edge_sdk.errors import DataError, EdgeSDKError
from export.audit.results import AUDIT_FILE, AuditReport
from export.audit.target import Target
from export.checkpoint import Checkpoint, load_checkpoint, rounded_to_int8
from export.data import load_splits
from export.defenses import defense_class
from export.train import evaluate

ZOO = Path(__file__).resolve().parent.parent / "export" / "zoo"


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", default="cifar10", help="what it was trained on, as for edgesdk train")
    parser.add_argument("--int8-tails", action="store_true", help="so that all of the zoo stays small")
    arguments = parser.parse_args()
    try:
        trained = load_checkpoint(arguments.checkpoint)
        int8 = tail_matrices(trained) if arguments.int8_tails else []
        checkpoint = rounded(trained, arguments.data, int8)
    except EdgeSDKError as error:
        sys.exit(f"make_zoo: {error}")
    for part, accuracy in checkpoint.accuracy.items():
        print(f"{part}: {trained.accuracy[part]:.2%} as trained, {accuracy:.2%} as stored")
    folder = ZOO / f"{checkpoint.defense}-{checkpoint.config.backbone}"
    checkpoint.save(folder / "model.safetensors", int8)
    (folder / AUDIT_FILE).unlink(missing_ok=True)  # of the weights before
    (folder / "README.md").write_text(card(checkpoint))
    print(folder)


def tail_matrices(checkpoint: Checkpoint) -> list[str]:
    """Names of what the servers multiply by."""
    weights = checkpoint.weights.items()
    return [name for name, tensor in weights if name.startswith("tails.") and _is_matrix(tensor)]


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() > 1


def rounded(checkpoint: Checkpoint, data: str, int8: Collection[str]) -> Checkpoint:
    """The checkpoint as the zoo stores it, its accuracies on held-out images measured anew.

    Raises:
        DataError: ``data`` is not what it was trained on.
    """
    splits = load_splits(data, checkpoint.image_size, checkpoint.data["seed"])
    if splits.record() != checkpoint.data:
        raise DataError(f"{data}: not the images that the checkpoint was trained on")
    weights = {
        name: rounded_to_int8(tensor) if name in int8 else tensor.half() if _is_matrix(tensor) else tensor
        for name, tensor in checkpoint.weights.items()
    }
    stored = replace(checkpoint, weights=weights)
    model, device = stored.build(), torch.device("cpu")
    measured = {part: evaluate(model, getattr(splits, part), device) for part in ("validation", "test")}
    return replace(stored, accuracy={**checkpoint.accuracy, **measured})


def card(checkpoint: Checkpoint, audit: AuditReport | None = None) -> str:
    """The model card, from what the checkpoint and the audit of its weights record."""
    training, data, accuracy = checkpoint.training, checkpoint.data, checkpoint.accuracy
    size = checkpoint.image_size
    target = Target(checkpoint)
    settings = {k: getattr(checkpoint.config, k) for k in checkpoint.config.__dataclass_fields__}
    recipe = {k: v for k, v in training.items() if k not in ("model", "defense")}
    parts = "\n".join(f"| {n} | {p['num_images']:,} | `{p['sha256'][:16]}` |" for n, p in data["parts"].items())
    return f"""---
license: apache-2.0
library_name: edgesdk
datasets: [{data["name"]}]
metrics: [accuracy]
pipeline_tag: image-classification
---
# {checkpoint.defense}-{checkpoint.config.backbone}, {size}x{size}

Defense: `{checkpoint.defense}` ({defense_class(checkpoint.defense).paper}). Settings: {_code(settings)}

| | |
|---|---|
| test accuracy | {accuracy["test"]:.2%} ({data["parts"]["test"]["num_images"]:,} images, float32, weights as stored) |
| validation accuracy | {accuracy["validation"]:.2%} |
| train accuracy | {accuracy["train"]:.2%} (mean over the last epoch, augmented images) |
| edge | {target.edge_cost.flops / 1e6:.2f} MFLOP (1 MAC = 2 FLOPs), {target.edge_cost.num_params:,} parameters |
| leaves the device | {target.wire_bytes:,} bytes an image in float32 |
| feature range | {", ".join(f"{low:.4g} to {high:.4g}" for low, high in checkpoint.feature_ranges)} |

## Training

{_code(recipe)}

{_began(training)}
Settings were chosen on validation and auxiliary images, none by the test images.

## Data

`{data["name"]}`, split by content hash, seed {data["seed"]}. Auxiliary images are for attackers: no training saw them.

| part | images | sha256 |
|---|---|---|
{parts}

## Privacy audit

{_audited(audit)}

## Limits

{_stored(checkpoint)}, and computed with in float32.
A small model for {size}x{size} images of {len(checkpoint.class_names)} classes
({", ".join(checkpoint.class_names)}):
for trying the tools and comparing defenses, not for use on people.
"""


def _stored(checkpoint: Checkpoint) -> str:
    tails = {checkpoint.weights[name].dtype for name in tail_matrices(checkpoint)}
    int8 = ", those of the tails as int8 with a scale for each output channel" if torch.float32 in tails else ""
    return f"Matrices and kernels are stored as float16{int8}"


def _began(training: Mapping[str, Any]) -> str:
    """Where the training's weights and targets came from."""
    taught = "; this one was taught by the undefended one's answers as well as by the labels"
    if "base" in training:
        began = f"It began with the weights of the model `{training['base']}`: these epochs come on top of that one's"
    else:
        began = "Models of this zoo that began with random weights were trained by the same recipe and number of epochs"
    return f"{began}{taught if 'teacher' in training else ''}."


def _audited(audit: AuditReport | None) -> str:
    if audit is None:
        return (
            "Not audited yet. Features are not encryption: without an audit, nothing is claimed of what a server can "
            "rebuild."
        )
    header = ["who sees", "numbers an image", "attack", "PSNR, dB", "floor, dB", "SSIM", "images"]
    rows = [
        [
            view.name if view.in_threat_model else f"{view.name} (outside the threat model)",
            f"{view.num_features:,}",
            attack.name,
            f"{attack.psnr_db:.2f} ± {attack.psnr_std_error:.2f}",
            f"{view.floor(attack):.2f}",
            f"{attack.ssim:.3f}",
            f"{attack.num_images:,}",
        ]
        for view in audit.views
        for attack in view.attacks
    ]
    figures = [f"{metric.title} of {view.name} {metric.value:.4g}" for view in audit.views for metric in view.metrics]
    return (
        f"`edgesdk audit`, budget `{audit.budget}`, features as {audit.wire_dtype}, seed {audit.seed}; the attackers "
        f"had {audit.data['parts']['auxiliary']['num_images']:,} auxiliary images. Lower is more private; the floor is "
        f"what the mean image reaches on the same images.\n\n{markdown(header, rows)}"
        f"\n\nMetrics: {', '.join(figures)}. All of it, with standard errors: [`{AUDIT_FILE}`]({AUDIT_FILE})."
    )


def _code(record: dict[str, object]) -> str:
    return ", ".join(
        f"`{key}={value:.9g}`" if isinstance(value, float) else f"`{key}={value}`" for key, value in record.items()
    )


if __name__ == "__main__":
    main()
