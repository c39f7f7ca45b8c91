"""``edgesdk audit``: attack a trained model as its servers could."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from ..errors import DataError, needs_extra
from .export import LowPrecision, WireDtype
from .train import TorchDevice

if TYPE_CHECKING:
    from export.audit.results import AuditReport


def audit(
    model: str = typer.Argument(..., help="model.safetensors of a training, or the name of a shipped defense."),
    data: str = typer.Option(..., help="The images that it was trained on, as for train."),
    out: Path = typer.Option(..., help="Folder of the report; an audit that was stopped there goes on."),
    backbone: str = typer.Option("cnn", help="Of a shipped model."),
    attack: list[str] = typer.Option([], help="Only blind, inversion, likelihood or diffusion; may be repeated."),
    metric: list[str] = typer.Option([], help="Only fsinfo, mine, dcor, entropy or effective; may be repeated."),
    collude: int | None = typer.Option(None, min=1, help="Servers that pool what they see; default: fewer than half."),
    budget: Literal["small", "full"] = typer.Option(
        "small", help="The attackers' means: for two CPU cores, or for a GPU and a night."
    ),
    n: int | None = typer.Option(None, "--n", min=2, help="Test images to attack at most; default: the budget's."),
    wire_dtype: WireDtype = typer.Option(WireDtype.FLOAT32, help="What the features travel as."),
    precision: LowPrecision | None = typer.Option(
        None, help="Attack the encoder as it is exported in it; default: float32."
    ),
    against: list[Path] = typer.Option(
        [], help="audit.json of another model to compare with; may be repeated. [default: the shipped models']"
    ),
    seed: int = typer.Option(0, min=0, max=2**31, help="Of everything drawn."),
    device: TorchDevice = typer.Option("auto", help="Where attackers compute; auto takes a GPU that is there."),
    threads: int | None = typer.Option(None, min=1, max=1024, help="CPU threads of torch."),
    as_json: bool = typer.Option(False, "--json", help="The report as JSON."),
) -> None:
    """Measure what a model's features give away, and attack them: metrics, rebuilt images, and a page with pictures.

    What is attacked is the exported encoder, in the precision and wire dtype given. Writes audit.json and audit.html;
    --attack or --metric alone leaves the other kind out.
    """
    from ..files import blocking
    from ..page import check_installed

    check_installed()
    if at := blocking(out):
        raise DataError(f"{out}: cannot hold the report, {at} is not a folder that can be written to")
    with needs_extra("audit", "edgesdk audit"):
        import diffusers  # noqa: F401  found missing now, not after the attacks before
        import skimage  # noqa: F401
        import torch

        from export.audit.report import write_html
        from export.audit.results import load_report
        from export.audit.run import ATTACKS, METRICS, AuditConfig, run_audit
        from export.audit.target import Target
        from export.data import load_splits
        from export.quantize import calibration_images
        from export.train import choose_device
        from export.zoo import named_checkpoint, shipped_audits
    from ..progress import stages
    from .tables import write_json

    if threads is not None:
        torch.set_num_threads(threads)
    everything = not attack and not metric
    config = AuditConfig(
        metrics=METRICS if everything else tuple(metric),
        attacks=ATTACKS if everything else tuple(attack),
        budget=budget,
        collude=collude,
        num_images=n,
        seed=seed,
    )
    chosen = choose_device(device)
    checkpoint = named_checkpoint(model, backbone)
    others = [load_report(each) for each in against]
    if not others:
        shipped = (load_report(each) for each in shipped_audits(checkpoint.config.backbone))
        others = [each for each in shipped if (each.data, each.image_size) == (checkpoint.data, checkpoint.image_size)]
    splits = load_splits(data, checkpoint.image_size, checkpoint.data["seed"])
    target = Target(
        checkpoint,
        wire_dtype=wire_dtype.value,
        precision="fp32" if precision is None else precision.value,
        calibration=calibration_images(splits.train.pixels) if precision is LowPrecision.INT8 else None,
        num_threads=threads,
        device=chosen,
    )
    with stages() as progress:
        report = run_audit(target, splits, config, out, progress)
    page = write_html(report, target, splits, out, others)
    if as_json:
        write_json("-", report)
    else:
        print_report(report)
        typer.echo(f"{page}")


def print_report(report: AuditReport) -> None:
    """The audit as tables."""
    from .tables import print_table

    attacks = [
        [view.name, a.name, f"{a.psnr_db:.2f} ± {a.psnr_std_error:.2f}", f"{a.ssim:.3f} ± {a.ssim_std_error:.3f}",
         f"{a.mse:.4f}", f"{a.num_images:,}"]
        for view in report.views for a in view.attacks
    ]  # fmt: skip
    metrics = [
        [view.name, m.title, f"{m.value:.4g}" + ("" if m.std_error is None else f" ± {m.std_error:.2g}"), m.unit,
         f"{m.num_samples:,}"]
        for view in report.views for m in view.metrics
    ]  # fmt: skip
    title = (
        f"{report.title} ({report.config['backbone']}), encoder in {report.precision}, "
        f"features as {report.wire_dtype}, budget {report.budget}"
    )
    if attacks:
        print_table(title, ["who sees", "attack", "PSNR, dB", "SSIM", "MSE", "images"], attacks)
    if metrics:
        print_table("metrics", ["who sees", "metric", "value", "unit", "images"], metrics)
