"""How FSInfo and what an attack reaches fall together as noise grows: one encoder at several levels of it, attacked.

    python tools/noise_levels.py --data cifar10 --out levels [--base none] [--sigma 0.3 …] [--keep]

Noise of each standard deviation is put on a shipped model's features, as FSInfoGuard does; the tail stays as it is, so
that the accuracy printed is what fine-tuning would begin with. Of every level FSInfo is measured and the decoder
attacks, which is the best attack in every audit kept here. --keep puts the reports into export/zoo/levels, for the rank
correlation of tools/audit_table.py and the figure of `edgesdk audit`. Stopped and run again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from make_zoo import ZOO

from edge_sdk.cli.tables import print_table
from edge_sdk.errors import EdgeSDKError
from edge_sdk.files import write_aside
from edge_sdk.progress import stages
from export.audit.results import AuditReport
from export.audit.run import AuditConfig, run_audit
from export.audit.target import Target
from export.calibrate import on_top_of
from export.checkpoint import Checkpoint, load_checkpoint
from export.data import Splits, load_splits
from export.defenses import model_config
from export.defenses.fsinfoguard import guarded_weights
from export.train import choose_device, evaluate
from export.zoo import zoo_model

LEVELS = ZOO / "levels"
SIGMAS = (0.1, 0.3, 1.0, 3.0)
"""In units of the features, nearly all of which lie between 0 and 1.3 in the undefended model."""


def main() -> None:
    """Parse the command line, calibrate, attack and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="what the model was trained on, as for edgesdk train")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="none", help="a shipped defense without noise")
    parser.add_argument("--backbone", default="cnn")
    parser.add_argument("--sigma", type=float, action="append", help="in units of the features; default: four levels")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--device", default="auto", help="where attackers compute: auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = AuditConfig(metrics=("fsinfo",), attacks=("blind", "inversion"))
    reports = []
    try:
        device = choose_device(arguments.device)
        base = load_checkpoint(zoo_model(arguments.base, arguments.backbone))
        splits = load_splits(arguments.data, base.image_size, base.data["seed"])
        for sigma in arguments.sigma or SIGMAS:
            name = f"{arguments.base}-{arguments.backbone}-{sigma:g}"
            level = with_noise(base, sigma, splits)
            target = Target(level, num_threads=arguments.threads, device=device)
            with stages() as progress:
                report = run_audit(
                    target, splits, config, arguments.out / name,
                    lambda what, done, total, name=name: progress(f"{name}, {what}", done, total),
                )  # fmt: skip
            reports.append(report)
            if arguments.keep:
                LEVELS.mkdir(exist_ok=True)
                write_aside(LEVELS / f"{name}.json", msgspec.json.encode(report) + b"\n")
    except EdgeSDKError as error:
        sys.exit(f"noise_levels: {error}")
    print_levels(arguments.base, reports)


def with_noise(base: Checkpoint, sigma: float, splits: Splits) -> Checkpoint:
    """The model with this noise on every share, its accuracy on held-out images measured under it."""
    model = base.build()
    sigmas = (sigma,) * len(model.tails)
    config = model_config("fsinfoguard", **on_top_of(base), sigma=sigmas)
    weights = guarded_weights(base.weights, sigmas)
    noisy = replace(base, defense="fsinfoguard", config=config, weights=weights, training={"base": base.identity})
    torch.manual_seed(0)
    parts = {"validation": splits.validation, "test": splits.test}
    model = noisy.build()
    return replace(noisy, accuracy={name: evaluate(model, each, torch.device("cpu")) for name, each in parts.items()})


def print_levels(base: str, reports: list[AuditReport]) -> None:
    """A line for each level."""
    rows = []
    for report in reports:
        view = report.worst
        information, attack = view.metric("FSInfo"), view.best_attack
        assert information is not None
        sigma = ", ".join(f"{each:.3g}" for each in report.config["sigma"])
        rows.append(
            [sigma, f"{report.accuracy['test']:.2%}", f"{information.value:.3f}",
             f"{attack.psnr_db:.2f} ± {attack.psnr_std_error:.2f}", f"{attack.ssim:.3f}"]
        )  # fmt: skip
    print_table(
        f"{base} with noise that its tail was not trained to",
        ["sigma", "accuracy", "FSInfo", "inversion, dB", "SSIM"],
        rows,
    )


if __name__ == "__main__":
    main()
