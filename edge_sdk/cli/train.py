"""``edgesdk train``: a defended model from images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import typer

from ..errors import ConfigError, needs_extra

TorchDevice = Literal["auto", "cpu", "cuda"]

DISTILLATION = 0.75
"""Of the targets, where a teacher is given and no share."""


def train(
    defense: str = typer.Option(
        ..., help="none, siftfunnel, privdfs, gaussian, dropout, nopeek, or fsinfoguard with --base."
    ),
    data: str = typer.Option(..., help="cifar10, cifar100, an archive of them, or a folder with train/CLASS/*."),
    out: Path = typer.Option(..., help="Folder for state, metrics and the trained model."),
    backbone: str = typer.Option("cnn", help="Network that is cut: cnn, resnet18, vgg16 or vit."),
    recipe: str = typer.Option("zoo", help="A training schedule: zoo, the shipped models', or siftfunnel-paper."),
    split: int | None = typer.Option(
        None, min=1, help="Backbone blocks on the device, for defenses that can be cut anywhere."
    ),
    adversarial: float | None = typer.Option(
        None, help="privdfs: weight of training against decoders that rebuild images from one share. [default: 0, none]"
    ),
    base: str | None = typer.Option(
        None, help="model.safetensors, or the name of a shipped defense, whose weights to start from."
    ),
    fsinfo_target: float | None = typer.Option(None, help="With --base: FSInfo to allow, nats a dimension."),
    psnr_ceiling: float | None = typer.Option(
        None, help="With --base: PSNR that a Gaussian model of images may allow, dB; audit what attacks reach."
    ),
    teacher: str | None = typer.Option(
        None, help="model.safetensors, or the name of a shipped defense (with --backbone), to learn the answers of too."
    ),
    distillation: float | None = typer.Option(None, help="With --teacher: share of its answers in the targets."),
    setting: list[str] = typer.Option([], "--set", help="A setting of the defense, as NAME=VALUE; may be repeated."),
    epochs: int | None = typer.Option(None, min=1, help="Instead of the recipe's."),
    batch_size: int | None = typer.Option(None, min=2, help="Instead of the recipe's."),
    lr: float | None = typer.Option(None, help="Highest learning rate, instead of the recipe's."),
    image_size: int | None = typer.Option(None, min=16, help="A multiple of 16, instead of the recipe's."),
    precision: Literal["float32", "bfloat16"] | None = typer.Option(
        None, help="What to compute in, bfloat16 mixed with float32; instead of the recipe's."
    ),
    seed: int = typer.Option(0, min=0, max=2**31, help="Of the weights, the order and the augmentation."),
    split_seed: int = typer.Option(0, min=0, help="Of the train, validation and auxiliary parts."),
    device: TorchDevice = typer.Option("auto", help="Where to compute; auto takes a GPU that is there."),
    threads: int | None = typer.Option(None, min=1, max=1024, help="CPU threads of torch."),
    resume: bool = typer.Option(False, help="Continue the run that is in --out."),
) -> None:
    """Train a defended model, or the undefended baseline.

    Writes state.safetensors after every epoch (--resume continues from it, bit for bit on the same device),
    metrics.jsonl, and at the end model.safetensors, which `edgesdk export --checkpoint` takes.
    """
    with needs_extra("export", "edgesdk train"):
        import torch

        from export.base_model import check_noise, start_from
        from export.checkpoint import build_defense
        from export.data import load_splits
        from export.recipes import recipe_config, recipe_of
        from export.train import check_out, choose_device
        from export.train import train as run_training
        from export.zoo import named_checkpoint
    try:
        settings = dict(parse_setting(text) for text in setting)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    if split is not None:
        settings["split"] = split
    if adversarial is not None:
        settings["adversarial"] = adversarial
    if threads is not None:
        torch.set_num_threads(threads)
    changes = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "image_size": image_size,
        "precision": precision,
        "distillation": distillation if distillation is not None or teacher is None else DISTILLATION,
        "seed": seed,
    }
    if base is None and (fsinfo_target is not None or psnr_ceiling is not None):
        raise typer.BadParameter(
            "--fsinfo-target and --psnr-ceiling are for noise on a trained model: give it to --base"
        )
    if teacher is None and distillation:
        raise typer.BadParameter(f"--distillation {distillation:g} is of a teacher's answers: give --teacher")
    source = None if base is None else named_checkpoint(base, backbone)
    teaching = None if teacher is None else named_checkpoint(teacher, backbone)
    if source is None:  # checked once before the images are read, and again with their number of classes
        config = recipe_config(recipe, defense, {"backbone": backbone, **settings}, changes)
        with torch.device("meta"):
            build_defense(defense, config.model)
    else:
        if image_size not in (None, source.image_size):
            raise ConfigError(
                f"--image-size {image_size}: the base is of {source.image_size}x{source.image_size} images"
            )
        changes["image_size"] = source.image_size
        recipe_of(recipe, defense, source.config, changes)
        check_noise(defense, fsinfo_target, psnr_ceiling)
    size = config.image_size if source is None else source.image_size
    if teaching is not None and teaching.image_size != size:
        raise ConfigError(f"the teacher takes images of {teaching.image_size}x{teaching.image_size}, not {size}x{size}")
    chosen = choose_device(device)
    check_out(out, resume)
    splits = load_splits(data, size, split_seed)
    initial = None
    if source is not None:
        settings, initial = start_from(
            source, defense, settings, splits, fsinfo_target=fsinfo_target, psnr_ceiling=psnr_ceiling, seed=seed
        )
    config = recipe_config(
        recipe, defense, {"backbone": backbone, "num_classes": len(splits.class_names), **settings}, changes
    )
    typer.echo(f"{splits.name}: {len(splits.train)} training images, {len(splits.class_names)} classes", err=True)
    checkpoint = run_training(
        config, splits, out, device=chosen, resume=resume, initial=initial, base=source, teacher=teaching,
        report=_report,
    )  # fmt: skip
    for part, accuracy in checkpoint.accuracy.items():
        typer.echo(f"{part} accuracy {accuracy:.2%}")
    typer.echo(f"{out / 'model.safetensors'}")


def parse_setting(text: str) -> tuple[str, Any]:
    """Name and value of ``NAME=VALUE``, the value as JSON or else as it stands.

    Raises:
        ConfigError: it has no name or no value.
    """
    import json

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {text!r}: expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _report(metrics: dict[str, Any]) -> None:
    typer.echo(
        f"epoch {metrics['epoch']}: loss {metrics['loss']:.4f}, train {metrics['train_accuracy']:.2%}, "
        f"validation {metrics['validation_accuracy']:.2%}, {metrics['seconds']:.0f} s",
        err=True,
    )
