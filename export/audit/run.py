"""The audit: every metric and every attack on every adversary, kept as it goes so that it can be stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

import edge_sdk
from edge_sdk.errors import ConfigError, DataError
from edge_sdk.files import write_aside

from ..checkpoint import load_tensors, save_tensors
from ..data import Splits
from ..defenses import completed_settings
from ..train import environment
from .attacks.base import Rebuild
from .budget import Budget, Entry, budget
from .images import AuditImages, sample
from .measure import BATCH, METRICS, Measurements
from .quality import mse, psnr, ssim
from .results import AUDIT_FILE, AttackResult, AuditReport, MetricResult, ViewResult, mean_and_error
from .target import ServerView, Target

ATTACKS = ("blind", "inversion", "likelihood", "diffusion")
VALIDATION_IMAGES = 400

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and the steps done and in all."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What is measured, and with which means.

    Attributes:
        metrics: of METRICS.
        attacks: of ATTACKS.
        budget: name of the attackers' means.
        collude: servers that pool what they see; None takes what the defense allows for, less than half of them.
        num_images: to attack, at most; None takes the budget's.
        seed: of everything drawn.

    Raises:
        ConfigError: an unknown metric or attack, or none at all.
    """

    metrics: tuple[str, ...] = METRICS
    attacks: tuple[str, ...] = ATTACKS
    budget: str = "small"
    collude: int | None = None
    num_images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for kind, asked, known in (("metric", self.metrics, METRICS), ("attack", self.attacks, ATTACKS)):
            for name in asked:
                if name not in known:
                    raise ConfigError(f"no {kind} {name!r}; available: {', '.join(known)}")
        if not self.metrics and not self.attacks:
            raise ConfigError("nothing to audit: no metric and no attack")
        if self.num_images is not None and self.num_images < 2:
            raise ConfigError(f"at least 2 images must be attacked, got {self.num_images}")
        budget(self.budget, self.seed)


class Adversary(NamedTuple):
    """Servers that see together, and whether the defense claims anything against them."""

    servers: tuple[int, ...]
    in_threat_model: bool

    @property
    def name(self) -> str:
        return "+".join(f"server{k}" for k in self.servers)


def adversaries(num_servers: int, collude: int | None) -> list[Adversary]:
    """Every server alone, every set of ``collude``, and all together.

    Against less than half of the servers, ``(K - 1) // 2``, a defense with several claims something (PrivDFS, arXiv
    2508.04346: an honest majority); with one server, against that one.

    Raises:
        ConfigError: ``collude`` is not 1 to the number of servers.
    """
    together = _most_allowed(num_servers) if collude is None else collude
    if not 1 <= together <= num_servers:
        raise ConfigError(
            f"{together} servers cannot collude: this model has {num_servers}"
            + ("; leave --collude out" if num_servers == 1 else f", so --collude is 1 to {num_servers}")
        )
    return [each for each in _every_set(num_servers) if len(each.servers) in (1, together, num_servers)]


def _every_set(num_servers: int) -> list[Adversary]:
    """All that could pool what they see."""
    allowed = _most_allowed(num_servers)
    return [
        Adversary(servers, len(servers) <= allowed)
        for size in range(1, num_servers + 1)
        for servers in combinations(range(num_servers), size)
    ]


def _most_allowed(num_servers: int) -> int:
    return max((num_servers - 1) // 2, 1)


def run_audit(
    target: Target,
    splits: Splits,
    config: AuditConfig,
    out: Path,
    progress: Progress = lambda what, done, total: None,
) -> AuditReport:
    """Audit a model; stopped and run again on the same machine, it goes on where it was, to the same result.

    ``out`` gets ``work/`` (finished parts, states of attacks, rebuilt images) and at the end ``audit.json``.

    Args:
        target: the model.
        splits: images at its size, in the parts of its training: ``auxiliary`` is the attackers'.
        config: what to do.
        out: a folder, made if need be.
        progress: called as it goes.

    Raises:
        DataError: the splits are not those of the training, or ``out`` holds an audit of another model or settings.
        ConfigError: ``collude`` is more than there are servers.
    """
    if splits.record() != target.checkpoint.data:
        raise DataError(
            f"{splits.name}: not the parts that this model was trained on; the attackers' images might be among them"
        )
    asked = adversaries(target.num_servers, config.collude)
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    report = _header(target, config)
    means = budget(config.budget, config.seed)
    _claim(work, target, report, config, means)
    images = AuditImages.of(splits)
    views = [
        _audit_view(target, adversary, images, means, config, work / adversary.name, progress, asked=adversary in asked)
        for adversary in _every_set(target.num_servers)
        if adversary in asked or (work / adversary.name).is_dir()
    ]
    # An adversary that an earlier call was stopped before finding anything of is none of this audit's.
    report = msgspec.structs.replace(report, views=tuple(view for view in views if view.attacks or view.metrics))
    write_aside(out / AUDIT_FILE, msgspec.json.format(msgspec.json.encode(report), indent=1))
    return report


def rebuilt_images(out: Path, adversary: str, attack: str) -> Tensor:
    """What an attack of a finished audit rebuilt, uint8 ``(N, 3, H, W)``, in the order of the attacked images.

    Raises:
        DataError: the audit in ``out`` has no such attack.
    """
    folder = out / "work" / adversary / attack
    paths = sorted(folder.glob("rebuilt.*.safetensors"), key=lambda path: int(path.suffixes[0][1:]))
    if not paths:
        raise DataError(f"{folder}: no rebuilt images there")
    return torch.cat([load_tensors(path)[0]["rebuilt"] for path in paths])


def _header(target: Target, config: AuditConfig) -> AuditReport:
    checkpoint = target.checkpoint
    return AuditReport(
        weights_sha256=checkpoint.weights_sha256,
        defense=checkpoint.defense,
        config=checkpoint.settings,
        image_size=checkpoint.image_size,
        accuracy=checkpoint.accuracy,
        edge_flops=target.edge_cost.flops,
        wire_bytes=target.wire_bytes,
        wire_dtype=target.wire_dtype,
        precision=target.precision,
        data=checkpoint.data,
        budget=config.budget,
        seed=config.seed,
        machine={**environment(target.device), "edgesdk": edge_sdk.__version__},
        code_sha256=code_sha256(),
        views=(),
    )


def _claim(work: Path, target: Target, report: AuditReport, config: AuditConfig, means: Budget) -> None:
    """Note whose audit this folder holds; another's would be mixed with it."""
    identity = {
        "code": report.code_sha256,
        "weights_sha256": report.weights_sha256,
        "config": report.config,
        "wire_dtype": report.wire_dtype,
        "precision": report.precision,
        "device": target.device.type,
        "means": [means.num_metric_images, means.num_jacobians, _settings(means)],
    }
    ours = json.loads(json.dumps({**identity, **asdict(config)}))
    path = work / "settings.json"
    if path.exists():
        try:
            theirs = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise DataError(f"{path}: damaged; choose another --out") from error
        theirs = {"device": "cpu", "precision": "fp32", **theirs}  # before there was a choice
        theirs["config"] = completed_settings(target.checkpoint.defense, theirs.get("config", {}))
        # More metrics, attacks and adversaries may be asked of the same audit.
        more = ("metrics", "attacks", "collude")
        changed = sorted(key for key in ours if key not in more and theirs.get(key) != ours[key])
        if changed:
            raise DataError(f"{work.parent}: holds another audit ({', '.join(changed)} differ); choose another --out")
    write_aside(path, json.dumps(ours, indent=1).encode())


def code_sha256() -> str:
    """Of all that decides what an audit measures: half of it by one code and half by another would be neither's."""
    here = Path(__file__).parent
    measuring = [here / f"{name}.py" for name in ("images", "measure", "quality", "scale", "target")]
    paths = [*measuring, *sorted(here.glob("attacks/*.py")), *sorted(here.glob("metrics/*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _settings(means: Budget) -> dict[str, Any]:
    """Of each attack's candidates, and how many images it meets."""
    return {
        name: [entry.num_images, *({"name": each.name, **asdict(each)} for each in entry.candidates)]  # type: ignore[call-overload]
        for name, entry in means.attacks.items()
    }


def _audit_view(
    target: Target,
    adversary: Adversary,
    images: AuditImages,
    means: Budget,
    config: AuditConfig,
    folder: Path,
    progress: Progress,
    *,
    asked: bool,
) -> ViewResult:
    """What is asked for, and what an earlier call found in this folder; of an adversary not asked for, that alone."""
    view = target.view(adversary.servers)
    folder.mkdir(parents=True, exist_ok=True)

    def say(name: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(f"{adversary.name}: {name}", done, total)

    measurements = Measurements(view, images, means, config.seed)

    def measure(name: str) -> list[MetricResult]:
        return measurements.metric(name, say(name))

    def attack(name: str) -> AttackResult:
        return _attack(name, means.attacks[name], view, images, folder / name, config, say(name))

    def wanted(name: str, these: tuple[str, ...]) -> bool:
        return (asked and name in these) or (folder / f"{name}.json").exists()

    metrics = [
        _kept(folder / f"{name}.json", list[MetricResult], partial(measure, name))
        for name in METRICS
        if wanted(name, config.metrics)
    ]
    attacks = [
        _kept(folder / f"{name}.json", AttackResult, partial(attack, name))
        for name in ATTACKS
        if wanted(name, config.attacks)
    ]
    return ViewResult(
        name=adversary.name,
        servers=adversary.servers,
        in_threat_model=adversary.in_threat_model,
        num_features=view.num_received,
        metrics=tuple(metric for found in metrics for metric in found),
        attacks=tuple(attacks),
    )


def _kept(path: Path, kind: Any, make: Callable[[], Any]) -> Any:
    """What was found before, or is found now."""
    if path.exists():
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except msgspec.DecodeError as error:
            raise DataError(f"{path}: damaged; remove it to measure again") from error
    found = make()
    write_aside(path, msgspec.json.encode(found))
    return found


def _attack(
    name: str,
    entry: Entry,
    view: ServerView,
    images: AuditImages,
    folder: Path,
    config: AuditConfig,
    progress: Callable[[int, int], None],
) -> AttackResult:
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    validation = sample(images.validation, VALIDATION_IMAGES).float() / 255
    best, chosen, rebuild = -1.0, entry.candidates[0], None
    for candidate in entry.candidates:
        fitted = candidate.fit(view, images.auxiliary, folder / f"{candidate.name}.state.safetensors", progress)
        if len(entry.candidates) == 1:
            rebuild = fitted
        elif (score := _score(view, fitted, validation, config.seed)) > best:
            best, chosen, rebuild = score, candidate, fitted
    assert rebuild is not None
    count = entry.num_images if config.num_images is None else min(config.num_images, entry.num_images)
    attacked = sample(images.test, count).float() / 255
    parts = []
    batches = attacked.split(BATCH)
    for i, batch in enumerate(batches):
        path = folder / f"rebuilt.{i}.safetensors"
        if not path.exists():
            torch.manual_seed(config.seed * 1_000_003 + i)
            rebuilt = (rebuild(view.observe(batch)) * 255).round().to(torch.uint8).contiguous()
            save_tensors(path, {"rebuilt": rebuilt}, {})
        parts.append(load_tensors(path)[0]["rebuilt"].float() / 255)
        progress(i + 1, len(batches))
    rebuilt = torch.cat(parts)
    each = psnr(attacked, rebuilt)
    mean, error = mean_and_error(each.tolist())
    squared, squared_error = mean_and_error(mse(attacked, rebuilt).tolist())
    similarity, similarity_error = mean_and_error(ssim(attacked, rebuilt).tolist())
    return AttackResult(
        name=name,
        settings=json.loads(json.dumps({"name": chosen.name, **asdict(chosen)})),  # type: ignore[call-overload]
        num_images=len(attacked),
        mse=squared,
        mse_std_error=squared_error,
        psnr_db=mean,
        psnr_std_error=error,
        ssim=similarity,
        ssim_std_error=similarity_error,
        psnr_each=tuple(round(value, 3) for value in each.tolist()),
        seconds=round(time.monotonic() - start, 1),
    )


def _score(view: ServerView, rebuild: Rebuild, images: Tensor, seed: int) -> float:
    torch.manual_seed(seed)
    return float(torch.cat([psnr(batch, rebuild(view.observe(batch))) for batch in images.split(BATCH)]).mean())
