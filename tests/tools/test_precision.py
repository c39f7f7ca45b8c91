"""tools/precision.py: what it measures of a real bundle, and when it fails."""

import importlib
import sys

import numpy as np
import pytest
from PIL import Image

from ..conftest import ROOT


@pytest.fixture
def precision(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("precision")


@pytest.mark.parametrize(
    ("points", "named"),
    [
        ({"fp32": 0.0, "fp16": -0.2, "int8": 1.0}, []),
        ({"fp32": 0.0, "fp16": 16 * 100 / 8000}, []),
        ({"fp32": 0.0, "fp16": -17 * 100 / 8000, "int8": -1.0}, ["fp16"]),
        ({"fp32": 0.0, "fp16": 0.3, "int8": -1.2}, ["fp16", "int8"]),  # further off is further off, up or down
    ],
)
def test_a_precision_may_be_so_far_from_float32(precision, points, named):
    assert [line.split()[0] for line in precision.beyond(points)] == named


def test_what_is_further_ends_with_status_1(precision, bundle, tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    (tmp_path / "cat").mkdir()
    for i in range(3):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "cat" / f"{i}.png")
    monkeypatch.setattr(precision, "ROUNDS", 2)
    monkeypatch.setattr(sys, "argv", ["precision.py", str(bundle), str(tmp_path)])
    monkeypatch.setattr(precision, "LIMITS", {"fp16": 100.0, "int8": 100.0})
    precision.main()
    assert "3 images" in capsys.readouterr().out
    monkeypatch.setattr(precision, "LIMITS", {"fp16": 100.0, "int8": -1.0})  # which nothing is within
    with pytest.raises(SystemExit, match=r"^precision: int8 is [+-]\d+\.\d\d points from float32, more than the -1\.0"):
        precision.main()
