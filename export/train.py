"""One training loop for every defense.

Each epoch starts from its own seed, so that a run that was stopped after an epoch continues to the same weights, bit
for bit on the same CPU with the same number of threads, without any random state on disk. On a GPU that is as far as
cuDNN's deterministic convolutions bring it.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edge_sdk.errors import ConfigError, DataError, DeviceError
from edge_sdk.files import blocking, write_aside
from edge_sdk.profile.machine import processor_name
from edge_sdk.progress import track

from .augment import augment, cut_mix
from .checkpoint import Checkpoint, load_tensors, save_tensors
from .data import Images, Splits
from .defenses import Batch, SplitModel, completed_settings, defense_class
from .recipes import TrainConfig
from .resume import epoch_seed, optimizer_tensors, restore_optimizer

STATE_FILE = "state.safetensors"
METRICS_FILE = "metrics.jsonl"
MODEL_FILE = "model.safetensors"
RANGE_QUANTILES = (0.001, 0.999)
CHECK_STEPS = 20
"""Between looks at the loss: each look waits for the device."""


def choose_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, or for ``auto`` the better one there is.

    Raises:
        DeviceError: CUDA was asked for and torch finds none, or no such name.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("torch finds no CUDA device; use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def train(
    config: TrainConfig,
    splits: Splits,
    out: Path,
    *,
    device: torch.device,
    resume: bool = False,
    initial: Mapping[str, Tensor] | None = None,
    base: Checkpoint | None = None,
    teacher: Checkpoint | None = None,
    report: Callable[[dict[str, Any]], None] = lambda metrics: None,
) -> Checkpoint:
    """Train to the last epoch, measure on the test images once, and write the model to ``out``.

    ``out`` gets ``state.safetensors`` (everything that a continuation needs, after every epoch), ``metrics.jsonl``
    (a line an epoch) and at the end ``model.safetensors``.

    Args:
        config: what to train; its number of classes must be that of ``splits``.
        splits: images at the config's size.
        out: a folder, made if need be.
        device: where to compute.
        resume: continue from ``out``'s state instead of refusing to overwrite it; from the start if there is none.
        initial: weights to start from instead of random ones.
        base: the trained model that these came from, for the record.
        teacher: a trained model whose answers make up ``config.distillation`` of the targets (Hinton et al., arXiv
            1503.02531; on the augmented image itself, as Beyer et al., arXiv 2106.05237).
        report: called with every epoch's metrics.

    Raises:
        DataError: ``out`` holds a run already (without ``resume``), one of other settings or data (with it), or the
            training diverged; or the teacher is of other data.
        ConfigError: a teacher without distillation, distillation without a teacher, or one of another image size.
    """
    if config.model.num_classes != len(splits.class_names):
        raise DataError(f"{config.model.num_classes} classes configured, {len(splits.class_names)} in {splits.name}")
    check_out(out, resume)
    run = _Run(config, splits, device, initial, base, teacher)
    state = out / STATE_FILE
    if state.exists():
        run.load(state)
    out.mkdir(parents=True, exist_ok=True)
    _write_metrics(out / METRICS_FILE, run.history)
    while run.epoch < config.epochs:
        metrics = run.train_epoch()
        run.save(state)
        _write_metrics(out / METRICS_FILE, run.history)
        report(metrics)
    torch.manual_seed(epoch_seed(config.seed, config.epochs))  # for noise: the same after a continuation
    accuracy = {
        "train": run.history[-1]["train_accuracy"],
        "validation": evaluate(run.model, splits.validation, device),
        "test": evaluate(run.model, splits.test, device),
    }
    checkpoint = Checkpoint(
        defense=config.defense,
        config=config.model,
        weights=run.model.state_dict(),
        image_size=config.image_size,
        class_names=splits.class_names,
        data=splits.record(),
        training={
            **run.settings,
            "seconds": round(sum(m["seconds"] for m in run.history), 3),
            **environment(device),
        },
        accuracy=accuracy,
        feature_ranges=feature_ranges(run.model, splits.train, device),
    )
    checkpoint.save(out / MODEL_FILE)
    return checkpoint


def check_out(out: Path, resume: bool) -> None:
    """Refuse to train over another run.

    Raises:
        DataError: ``out`` holds a training run without ``resume``, or a model alone, or cannot be a folder.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; --out needs a folder")
    if at := blocking(out):
        raise DataError(f"{out}: cannot hold a training, {at} is not a folder that can be written to")
    if (out / STATE_FILE).exists() and not resume:
        raise DataError(f"{out}: holds a training run already; add --resume to continue it, or choose another --out")
    if (out / MODEL_FILE).exists() and not (out / STATE_FILE).exists():
        raise DataError(f"{out}: holds a trained model; choose another --out")


def evaluate(model: SplitModel, images: Images, device: torch.device, batch_size: int = 250) -> float:
    """Top-1 accuracy in [0, 1], in float32 and inference mode."""
    model.eval()
    correct = 0
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            pixels, labels = _to_tensors(images, torch.arange(start, min(start + batch_size, len(images))), device)
            correct += int((model(pixels).argmax(1) == labels).sum())
    return correct / len(images)


def feature_ranges(
    model: SplitModel, images: Images, device: torch.device, num_images: int = 2000
) -> tuple[tuple[float, float], ...]:
    """Between what all but a thousandth of each share's features lie at either end, over images of all classes.

    Not the least and the largest: one outlier would leave all others a few steps of a uint8 wire.
    """
    model.eval()
    with torch.no_grad():
        # Evenly spaced: the rows of a folder are sorted by class.
        rows = torch.linspace(0, len(images) - 1, min(num_images, len(images))).round().long()
        bounds = np.array(
            [
                [np.quantile(share.cpu().numpy(), RANGE_QUANTILES) for share in model.features(pixels)]
                for pixels, _ in (_to_tensors(images, part, device) for part in rows.split(250))
            ]
        )
    low, high = bounds[..., 0].min(0), bounds[..., 1].max(0)
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware and software that a record of a training names."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": f"{device.type} ({name})",
        "num_threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


class _Run:
    """Model, optimiser and schedule of one training, between two epochs."""

    def __init__(
        self,
        config: TrainConfig,
        splits: Splits,
        device: torch.device,
        initial: Mapping[str, Tensor] | None = None,
        base: Checkpoint | None = None,
        teacher: Checkpoint | None = None,
    ) -> None:
        self.config, self.splits, self.device = config, splits, device
        self.settings = json.loads(json.dumps(asdict(config)))
        if base is not None:
            self.settings["base"] = base.identity
        self.teacher = None if teacher is None else _teacher(teacher, config, splits).to(device)
        if teacher is not None:
            self.settings["teacher"] = teacher.identity
        elif config.distillation:
            raise ConfigError("distillation needs a teacher: give --teacher")
        self.history: list[dict[str, Any]] = []
        torch.manual_seed(config.seed)
        cls: Any = defense_class(config.defense)
        self.defense = cls(config.model)
        self.model: SplitModel = self.defense.build()
        if initial is not None:
            self.model.load_state_dict(initial)
        if device.type == "cuda":
            torch.backends.cudnn.deterministic = True
        self.model.to(device, memory_format=torch.channels_last)
        self.defense.adversaries.to(device).train()
        trained = (*self.model.parameters(), *self.defense.adversaries.parameters())
        self.parameters = [parameter for parameter in trained if parameter.requires_grad]
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        self.optimizer = optimizer(
            self.parameters,
            config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            amsgrad=config.amsgrad,
            fused=True,
        )
        self.steps = len(splits.train) // config.batch_size
        if not self.steps:
            raise DataError(f"{len(splits.train)} training images are fewer than one batch of {config.batch_size}")
        self.scheduler: Any
        if config.schedule == "one_cycle":
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, config.learning_rate, total_steps=max(self.steps * config.epochs, 8), pct_start=0.25
            )
        else:
            self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=0.5)

    @property
    def epoch(self) -> int:
        return len(self.history)

    def train_epoch(self) -> dict[str, Any]:
        config, start = self.config, time.monotonic()
        torch.manual_seed(epoch_seed(config.seed, self.epoch))
        self.model.train()
        totals: dict[str, Tensor] = {}
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        batches = track(self._batches(), self.steps, f"epoch {self.epoch + 1} of {config.epochs}")
        for step, batch in enumerate(batches):
            with self._autocast():
                objective = self.defense.loss(self.model, batch)
            loss = objective.total
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if config.schedule == "one_cycle":
                self.scheduler.step()
            correct += (objective.logits.detach().argmax(1) == batch.labels).sum()
            for name, term in {**objective.terms, "loss": loss}.items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + term.detach()
            if step % CHECK_STEPS == 0 and not bool(torch.isfinite(totals["loss"])):
                raise DataError(f"training diverged in epoch {self.epoch + 1}, step {step + 1}; lower --lr")
        means = {name: total.item() / self.steps for name, total in totals.items()}
        if not math.isfinite(means["loss"]):
            raise DataError(f"training diverged in epoch {self.epoch + 1}; lower --lr")
        rate = self.optimizer.param_groups[0]["lr"]
        if config.schedule == "plateau":
            self.scheduler.step(means["loss"])
        metrics = {
            "epoch": self.epoch + 1,
            **means,
            "train_accuracy": correct.item() / (self.steps * config.batch_size),
            "validation_accuracy": evaluate(self.model, self.splits.validation, self.device),
            "learning_rate": rate,
            "seconds": round(time.monotonic() - start, 3),
        }
        self.history.append(metrics)
        return metrics

    def save(self, path: Path) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"adversaries.{name}": tensor for name, tensor in self.defense.adversaries.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer)
        record = {
            "settings": self.settings,
            "data": self.splits.record(),
            "history": self.history,
            "param_groups": self.optimizer.state_dict()["param_groups"],
            "scheduler": self.scheduler.state_dict(),
        }
        save_tensors(path, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, record)

    def load(self, path: Path) -> None:
        tensors, record = load_tensors(path)
        for what, mine in (("settings", self.settings), ("data", self.splits.record())):
            theirs = record.get(what, {})
            if what == "settings":
                theirs = _completed(theirs, self.config)
            changed = sorted(key for key in mine if theirs.get(key) != mine[key])
            if changed:
                raise DataError(f"{path}: another training ({what} differ: {', '.join(changed)}); choose another --out")
        with torch.no_grad():
            for kind, module in (("model", self.model), ("adversaries", self.defense.adversaries)):
                for name, tensor in module.state_dict().items():
                    tensor.copy_(tensors[f"{kind}.{name}"])
        restore_optimizer(self.optimizer, self.parameters, tensors, record["param_groups"])
        self.scheduler.load_state_dict(record["scheduler"])
        self.history = record["history"]

    def _batches(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.splits.train))
        padding = self.config.crop_padding * self.config.image_size // 32
        cutout = self.config.cutout * self.config.image_size // 32
        for step in range(self.steps):
            rows = order[step * self.config.batch_size : (step + 1) * self.config.batch_size]
            images, labels = _to_tensors(self.splits.train, rows, self.device)
            images = augment(images, padding, self.config.color_jitter, cutout)
            targets = functional.one_hot(labels, self.config.model.num_classes).float()
            images, targets = cut_mix(images, targets, self.config.cutmix)
            images = images.contiguous(memory_format=torch.channels_last)
            if self.teacher is not None:
                with torch.no_grad(), self._autocast():
                    answers = self.teacher(images).float().softmax(1)
                targets = targets.lerp(answers, self.config.distillation)
            yield Batch(images, labels, targets)

    def _autocast(self) -> Any:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def _completed(settings: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """A record of an older version with the defaults of the settings that it did not know."""
    defaults = {field.name: field.default for field in fields(config) if field.default is not MISSING}
    model = completed_settings(config.defense, settings.get("model", {}))
    completed: dict[str, Any] = json.loads(json.dumps({**defaults, **settings, "model": model}))
    return completed


def _teacher(checkpoint: Checkpoint, config: TrainConfig, splits: Splits) -> SplitModel:
    """The model that teaches, in inference mode.

    Raises:
        ConfigError: its answers make up none of the targets, or it is of another image size.
        DataError: it was trained on other data, or on other parts of it.
    """
    if not config.distillation:
        raise ConfigError("a teacher that makes up none of the targets; raise --distillation above 0")
    if checkpoint.data != splits.record() or checkpoint.class_names != splits.class_names:
        raise DataError(
            f"{splits.name}: not the parts that the teacher was trained on; it may have learnt what is held out here"
        )
    if checkpoint.image_size != config.image_size:
        raise ConfigError(f"the teacher takes images of {checkpoint.image_size}, this training has {config.image_size}")
    return checkpoint.build().to(memory_format=torch.channels_last)


def _to_tensors(images: Images, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images ``(N, 3, H, W)`` float in [0, 1] and labels ``(N,)``."""
    pixels = torch.from_numpy(images.pixels[rows.numpy()]).to(device)
    labels = torch.from_numpy(images.labels[rows.numpy()]).to(device)
    return pixels.permute(0, 3, 1, 2).float() / 255, labels


def _write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    write_aside(path, "".join(json.dumps(metrics) + "\n" for metrics in history).encode())
