"""Small pieces of real photographs, so that attacks and metrics meet images and not noise."""

from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image


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
