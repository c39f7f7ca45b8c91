"""What privacy by depth alone would cost the device: the undefended model cut after every block, and attacked.

    python tools/equal_privacy.py --data cifar10 --out cuts [--defense siftfunnel] [--attack inversion]

The shipped undefended network is cut after each of its blocks, its weights as they are, and every cut is audited as
`edgesdk audit` does it, beside a shipped defended model. The shallowest cut from which no more is rebuilt gives the
factor that SiftFunnel's paper states as nearly 20. By default the decoder alone attacks, which is the best attack in
every audit kept here; --attack, more than once, takes others too. Stopped and run again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from edge_sdk.cli.tables import print_table
from edge_sdk.errors import EdgeSDKError
from edge_sdk.progress import stages
from export.audit.results import AuditReport, reached
from export.audit.run import ATTACKS, AuditConfig, run_audit
from export.audit.target import Target
from export.checkpoint import Checkpoint, build_defense, load_checkpoint
from export.data import load_splits
from export.defenses import BASELINE
from export.models import build_backbone
from export.train import choose_device
from export.zoo import zoo_model


def main() -> None:
    """Parse the command line, attack and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="what the models were trained on, as for edgesdk train")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--defense", default="siftfunnel")
    parser.add_argument("--backbone", default="cnn")
    parser.add_argument("--attack", action="append", choices=ATTACKS, help="default: inversion")
    parser.add_argument("--n", type=int, help="test images to attack at most; default: the budget's")
    parser.add_argument("--budget", default="small", help="the attackers' means, as for edgesdk audit")
    parser.add_argument("--device", default="auto", help="where attackers compute: auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    attacks = tuple(arguments.attack or ("inversion",))
    try:
        config = AuditConfig(metrics=(), attacks=attacks, budget=arguments.budget, num_images=arguments.n)
        device = choose_device(arguments.device)
        defended = load_checkpoint(zoo_model(arguments.defense, arguments.backbone))
        splits = load_splits(arguments.data, defended.image_size, defended.data["seed"])
        models = {arguments.defense: defended, **dict(cuts(load_checkpoint(zoo_model(BASELINE, arguments.backbone))))}
        with stages() as progress:
            reports = {
                name: run_audit(
                    Target(model, num_threads=arguments.threads, device=device), splits, config, arguments.out / name,
                    lambda what, done, total, name=name: progress(f"{name}, {what}", done, total),
                )
                for name, model in models.items()
            }  # fmt: skip
    except EdgeSDKError as error:
        sys.exit(f"equal_privacy: {error}")
    report(arguments.defense, reports)


def cuts(undefended: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
    """The same weights cut after each block; a name for each."""
    weights = undefended.build().state_dict().values()
    for split in range(1, len(build_backbone(undefended.config.backbone, undefended.config.num_classes).blocks) + 1):
        config = replace(undefended.config, split=split)  # type: ignore[call-arg]
        names = build_defense(undefended.defense, config).state_dict()
        yield (
            f"{undefended.defense} after block {split}",
            replace(undefended, config=config, weights=dict(zip(names, weights, strict=True))),
        )


def report(defense: str, reports: dict[str, AuditReport]) -> None:
    """The table, and the factor."""
    values, _ = reached([each.worst for each in reports.values()])
    decibels = dict(zip(reports, values, strict=True))
    cost, limit = reports[defense].edge_flops, decibels[defense]
    rows = []
    for name, found in reports.items():
        best = found.worst.best_attack
        rows.append(
            [name, f"{found.edge_flops / 1e6:.2f}", f"{found.edge_flops / cost:.1f}", f"{found.wire_bytes:,}",
             f"{best.psnr_db:.2f} ± {best.psnr_std_error:.2f}", f"{best.ssim:.3f}", best.name]
        )  # fmt: skip
    header = ["device runs", "edge MFLOP", f"/ {defense}", "bytes", "PSNR, dB", "SSIM", "by"]
    print_table(f"the best of the attacks {', '.join(attacks_of(reports[defense]))}", header, rows)
    as_private = [found for name, found in reports.items() if name != defense and decibels[name] <= limit]
    if as_private:
        least = min(found.edge_flops for found in as_private)
        print(f"as private by depth alone: {least / 1e6:.2f} MFLOP, {least / cost:.1f} times {defense}'s")
    else:
        print(f"no cut is as private as {defense}")


def attacks_of(found: AuditReport) -> list[str]:
    """Names of the attacks made."""
    return [attack.name for attack in found.views[0].attacks]


if __name__ == "__main__":
    main()
