"""Accuracy against privacy over settings of a defense: short trainings, each attacked by a quick inversion decoder.

    python tools/sweep.py --data cifar10 --out sweep --variant density=0.05 --variant density=0.1,blocks=2

Every variant is trained by the zoo's recipe for --epochs; then a decoder is trained on auxiliary images to rebuild
what one server gets, and judged on validation images, as all of it is: no test image decides here. Stopped and run
again, it goes on where it was. The best settings of a short training need not be those of a long one: look at the
order.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from edge_sdk.cli.tables import print_table
from edge_sdk.cli.train import parse_setting
from edge_sdk.errors import EdgeSDKError
from edge_sdk.progress import stages
from export.audit.attacks.blind import BlindAttack
from export.audit.attacks.inversion import InversionAttack
from export.audit.images import AuditImages
from export.audit.quality import psnr
from export.audit.target import Target
from export.checkpoint import Checkpoint
from export.data import Splits, load_splits
from export.defenses import SplitModel
from export.defenses.privdfs import ShareMasks
from export.recipes import recipe_config
from export.train import evaluate, train

CPU = torch.device("cpu")
BATCH = 200


def main() -> None:
    """Parse the command line, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as for edgesdk train")
    parser.add_argument("--defense", default="privdfs")
    parser.add_argument("--variant", action="append", required=True, help="NAME=VALUE,NAME=VALUE: settings of it")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--cutmix", type=float, default=0.0, help="chance; the recipe's is for long trainings")
    parser.add_argument("--attack-epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        splits = load_splits(arguments.data, 32)
        found = [_measured(variant, splits, arguments) for variant in dict.fromkeys(arguments.variant)]
    except EdgeSDKError as error:
        sys.exit(f"sweep: {error}")
    columns = ["variant", *found[0]]
    rows = [[name, *map(str, row.values())] for name, row in zip(dict.fromkeys(arguments.variant), found, strict=True)]
    print_table(f"{arguments.defense}, {arguments.epochs} epochs of {splits.name}", columns, rows)


def _measured(variant: str, splits: Splits, arguments: argparse.Namespace) -> dict[str, Any]:
    out = arguments.out / variant.replace("/", "_")
    settings = dict(parse_setting(text) for text in variant.split(","))
    settings["num_classes"] = len(splits.class_names)
    changes: dict[str, Any] = {"epochs": arguments.epochs, "cutmix": arguments.cutmix}
    config = recipe_config("zoo", arguments.defense, settings, changes)
    checkpoint = train(config, splits, out, device=CPU, resume=True)  # refuses what other settings left there
    done = out / f"measured.{arguments.attack_epochs}.json"
    if done.exists():
        row: dict[str, Any] = json.loads(done.read_bytes())
        return row
    row = {**_accuracies(checkpoint, splits), **_leakage(checkpoint, splits, out, arguments)}
    done.write_text(json.dumps(row))
    return row


def _accuracies(checkpoint: Checkpoint, splits: Splits) -> dict[str, Any]:
    model = checkpoint.build().eval()
    row = {
        "validation": f"{checkpoint.accuracy['validation']:.2%}",
        "auxiliary": f"{evaluate(model, splits.auxiliary, CPU):.2%}",
    }
    if len(model.tails) > 1:
        row["without one, least"] = f"{min(_without_one(model, splits)):.2%}"
    for masks in (module for module in model.edge.modules() if isinstance(module, ShareMasks)):
        kept = [set(each.tolist()) for each in masks.kept]
        shared = [len(a & b) / max(min(len(a), len(b)), 1) for a, b in combinations(kept, 2)]
        row["kept a server"] = f"{sum(map(len, kept)) / len(kept) / masks.logits[0].numel():.1%}"
        row["mean overlap"] = f"{sum(shared) / len(shared):.1%}"
    return row


@torch.no_grad()
def _without_one(model: SplitModel, splits: Splits) -> list[float]:
    """Auxiliary accuracy where a server's answer never comes, for each of them."""
    images, labels = AuditImages.of(splits).auxiliary, torch.from_numpy(splits.auxiliary.labels)
    right = [0] * len(model.tails)
    for batch, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        shares = model.features(batch.float() / 255)
        answers = [tail(share) for tail, share in zip(model.tails, shares, strict=True)]
        for server in range(len(right)):
            received = torch.ones(len(batch), len(shares))
            received[:, server] = 0
            right[server] += int((model.fuse(answers, received).argmax(1) == truth).sum())
    return [count / len(labels) for count in right]


def _leakage(checkpoint: Checkpoint, splits: Splits, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    target, images = Target(checkpoint, num_threads=arguments.threads), AuditImages.of(splits)
    view = target.view([0])
    row: dict[str, Any] = {"edge MFLOP": f"{target.edge_cost.flops / 1e6:.1f}", "bytes": f"{target.wire_bytes:,}"}
    for name, attack in (("PSNR of share 0", InversionAttack(epochs=arguments.attack_epochs, width=64)),
                         ("blind", BlindAttack())):  # fmt: skip
        with stages() as progress:
            state = out / f"{attack.name}.{arguments.attack_epochs}.state.safetensors"
            rebuild = attack.fit(view, images.auxiliary, state,
                                 lambda done, total, name=attack.name: progress(name, done, total))  # fmt: skip
        each = [psnr(b, rebuild(view.observe(b)).float()) for b in (images.validation.float() / 255).split(BATCH)]
        row[name] = f"{torch.cat(each).mean():.2f} dB"
    return row


if __name__ == "__main__":
    main()
