"""Small pieces of real photographs, so that attacks and metrics meet images and not noise; and a whole small audit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from export.audit.attacks.blind import BlindAttack
from export.audit.attacks.diffusion import DiffusionAttack
from export.audit.attacks.inversion import InversionAttack
from export.audit.attacks.likelihood import LikelihoodAttack
from export.audit.budget import BUDGETS, Budget, Entry
from export.audit.run import AuditConfig, run_audit
from export.audit.target import Target
from export.data import load_splits


@pytest.fixture(scope="session")
def patches():
    """uint8 ``(1200, 3, 16, 16)``: patches of scikit-image's photographs, halved in size."""
    draw = np.random.default_rng(0)
    found = []
    for path in sorted((Path(skimage.__file__).parent / "data").glob("*.*")):
        if path.suffix in (".png", ".jpg", ".jpeg"):
            with Image.open(path) as image:
                if image.mode == "RGB" and min(image.size) >= 128:
                    found.append(np.asarray(image.reduce(4)))
    assert found
    rows = []
    for _ in range(1200):
        image = found[draw.integers(len(found))]
        y, x = draw.integers(image.shape[0] - 16), draw.integers(image.shape[1] - 16)
        rows.append(image[y : y + 16, x : x + 16])
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()


def tiny(seed):
    both = [InversionAttack(decoder=kind, width=8, epochs=2, seed=seed) for kind in ("residual", "transposed")]
    entries = {
        "blind": Entry((BlindAttack(),), 20),
        "inversion": Entry(tuple(both), 20),
        "likelihood": Entry((LikelihoodAttack(steps=4, restarts=1, seed=seed),), 4),
        "diffusion": Entry((DiffusionAttack(width=16, condition=16, epochs=1, sampling_steps=2, seed=seed),), 4),
    }
    return Budget(entries, num_metric_images=60, num_jacobians=2)


@pytest.fixture(autouse=True)
def _budget(monkeypatch):
    monkeypatch.setitem(BUDGETS, "tiny", tiny)


SIZE = 16  # of images: what is tested is the same as at 32, in a tenth of the time


@pytest.fixture(scope="session")
def splits(image_folder):
    return load_splits(str(image_folder), SIZE)


@pytest.fixture(scope="session")
def target(make_checkpoint, splits):
    return Target(replace(make_checkpoint("siftfunnel", size=SIZE), data=splits.record()))


def tiny_config(**changes):
    return AuditConfig(**{"attacks": ("blind", "inversion", "likelihood"), "budget": "tiny", **changes})


@pytest.fixture(scope="session")
def audited(target, splits, tmp_path_factory):
    """An audit that was not stopped, and its folder."""
    out = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "tiny", tiny)
        return run_audit(target, splits, tiny_config(), out), out
