"""What continuous integration is to have is no reason to skip there."""

import pytest

from .conftest import ROOT, lacking


@pytest.mark.parametrize("required", ["rtx", "ray,rtx", "all"])
def test_a_required_engine_that_is_not_here_fails(monkeypatch, required):
    monkeypatch.setenv("EDGESDK_REQUIRE_ENGINES", required)
    with pytest.raises(pytest.fail.Exception, match="no reason to skip"):
        lacking("rtx", "TensorRT for RTX")


@pytest.mark.parametrize("required", [None, "", "ray"])
def test_others_are_skipped(monkeypatch, required):
    monkeypatch.delenv("EDGESDK_REQUIRE_ENGINES", raising=False)
    if required is not None:
        monkeypatch.setenv("EDGESDK_REQUIRE_ENGINES", required)
    with pytest.raises(pytest.skip.Exception, match="needs TensorRT for RTX"):
        lacking("rtx", "TensorRT for RTX")


def test_continuous_integration_requires_the_one_that_builds_the_shipped_models_engines():
    assert "\nexport EDGESDK_REQUIRE_ENGINES=rtx\n" in (ROOT / ".ci" / "run").read_text()
