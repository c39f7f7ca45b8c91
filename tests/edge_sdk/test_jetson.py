import json
from types import SimpleNamespace

import pytest

from edge_sdk import doctor, jetson
from edge_sdk.doctor import _jetpack, _toolkit, examine

from ..conftest import edgesdk_here


@pytest.mark.parametrize(
    ("release", "version", "name", "python"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 1, BOARD: t186ref, EABI: aarch64, DATE: x", "32.7.1", "4", "3.6"),
        ("# R35 (release), REVISION: 4.1, GCID: 1, BOARD: t186ref, EABI: aarch64, DATE: x", "35.4.1", "5", "3.8"),
        (
            "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64, DATE: x",
            "36.4.3",
            "6.1 or 6.2",
            "3.10",
        ),
        ("# R36 (release), REVISION: 3.0, GCID: 1, BOARD: generic, EABI: aarch64, DATE: x", "36.3.0", "6.0", "3.10"),
        ("# R39 (release), REVISION: 2.0, GCID: 1, BOARD: generic, EABI: aarch64, DATE: x", "39.2.0", "7.2", "3.12"),
    ],
)
def test_the_jetpack_is_known_by_its_l4t(release, version, name, python):
    assert jetson.l4t_version(release) == version
    assert jetson.jetpack(version)[:2] == (name, python)


def test_what_is_no_release_is_none():
    assert jetson.l4t_version("Debian GNU/Linux") is None
    assert jetson.jetpack("99.1") is None


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n", "MODE_15W_6CORE"),
        ("NVPM ERROR: no permission\n", None),
    ],
)
def test_the_power_mode_is_read_from_nvpmodels_answer(text, mode):
    assert jetson.nvpmodel_mode(text) == mode


@pytest.mark.parametrize("name", ["17000000.gpu", "17000000.ga10b", "57000000.gpu", "gpu-gpc-0"])
def test_the_gpus_clock_is_read_from_sysfs(tmp_path, name):
    for folder, hertz in (("1-emc", (1, 1, 1)), (name, (306_000_000, 306_000_000, 1_020_000_000))):
        (tmp_path / "class" / "devfreq" / folder).mkdir(parents=True)
        for kind, value in zip(("cur", "min", "max"), hertz, strict=True):
            (tmp_path / "class" / "devfreq" / folder / f"{kind}_freq").write_text(f"{value}\n")
    clock = jetson.gpu_clock(tmp_path)
    assert clock == (306, 306, 1020)
    assert not clock.locked
    (tmp_path / "class" / "devfreq" / name / "cur_freq").write_text("")
    assert jetson.gpu_clock(tmp_path) is None


def test_jetpack_5_is_told_what_to_do():
    check = _jetpack("35.4.1", jetson.jetpack("35.4.1"), "NVIDIA Jetson AGX Orin Developer Kit")
    assert check.state == "missing"
    assert "Python 3.8, edgesdk for 3.10" in check.advice
    assert "update to JetPack 6.1" in check.advice


@pytest.mark.parametrize(
    ("module", "l4t"),
    [
        ("NVIDIA Jetson Nano Developer Kit", "32.7.1"),
        ("quill", "32.7.1"),  # TX2
        ("NVIDIA Jetson Xavier NX Developer Kit", "32.7.1"),  # for which there is a JetPack 5, whose Python is no help
        ("NVIDIA Jetson AGX Xavier", "32.7.1"),
        ("NVIDIA Jetson Xavier NX Developer Kit", "35.4.1"),
    ],
)
def test_a_module_that_no_jetpack_helps_is_not_sent_to_one(module, l4t):
    check = _jetpack(l4t, jetson.jetpack(l4t), module)
    assert check.state == "missing"
    assert "update" not in check.advice
    assert "no later one" not in check.advice
    assert "no JetPack for this module has that (the last for a Xavier is 5, with Python 3.8" in check.advice
    assert check.advice.endswith("; stay with --backend onnxruntime, on the CPU")


def test_jetpack_6_0_has_a_tensorrt_that_is_too_old():
    check = _jetpack("36.3.0", jetson.jetpack("36.3.0"), "NVIDIA Orin")
    assert (check.state, check.advice) == ("missing", "its TensorRT is too old: update to JetPack 6.1 or later")


def test_every_check_that_is_not_right_says_what_to_do():
    checks = {check.name: check for check in examine()}
    assert {"Python", "ONNX Runtime", "machine", "CUDA toolkit", "GPU", "TensorRT", "free memory", "cache"} <= set(
        checks
    )
    assert checks["ONNX Runtime"].state == "ok"
    assert all(check.advice for check in checks.values() if check.state != "ok")


def test_the_command_tells_it_as_json_too():
    checks = json.loads(edgesdk_here("doctor", "--json").stdout)
    assert {"edgesdk", "Python", "CUDA toolkit"} <= {check["name"] for check in checks}
    assert all(check["state"] in ("ok", "warn", "missing") for check in checks)
    table = edgesdk_here("doctor").stdout
    assert all(check["name"] in table for check in checks)


def test_the_cuda_toolkit_is_looked_for(tmp_path, monkeypatch):
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.68'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    check = next(_toolkit())
    assert (check.state, check.found) == ("ok", f"12.6 ({compiler})")
    compiler.write_text("#!/bin/sh\nexit 1\n")
    assert next(_toolkit()).state == "warn"


def test_of_several_cuda_toolkits_the_one_in_use_is_taken_else_the_newest(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(doctor, "LOCAL", tmp_path)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert next(_toolkit()).state == "missing"
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    assert next(_toolkit()).state == "warn"  # pycuda is there, and was what wanted it
    for name in ("cuda-9.0", "cuda-12.6", "cuda"):
        compiler = tmp_path / name / "bin" / "nvcc"
        compiler.parent.mkdir(parents=True)
        compiler.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {name}'\n")
        compiler.chmod(0o755)
        if name != "cuda-9.0":
            assert str(compiler) in next(_toolkit()).found


def test_a_tensorrt_installed_beside_jetpacks_is_enough(monkeypatch):
    known = jetson.jetpack("36.3.0")
    assert _jetpack("36.3.0", known, "NVIDIA Orin").state == "missing"
    monkeypatch.setattr(doctor, "load_library", lambda name: SimpleNamespace(too_old=""))
    assert _jetpack("36.3.0", known, "NVIDIA Orin").state == "warn"


def test_a_jetsons_checks(tmp_path, monkeypatch):
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64, DATE: x\n")
    monkeypatch.setattr(jetson, "RELEASE_FILE", release)
    checks = {check.name: check for check in examine()}
    assert checks["JetPack"].found == "6.1 or 6.2 (L4T 36.4.3), with TensorRT 10.3 for Python 3.10"
    assert checks["power mode"].state == "warn"  # no nvpmodel here
    assert "TensorRT for RTX" not in checks  # which is for no Jetson
    assert checks["GPU clock"].state == "warn"
    for odd in (b"", b"\xff\n"):
        release.write_bytes(odd)
        assert {check.name: check for check in examine()}["JetPack"].state == "warn"
    release.unlink()
    release.mkdir()  # as Docker makes one of a file that is not there
    assert {check.name: check for check in examine()}["JetPack"].found == "not known"
