"""Power from trees of files in both drivers' layouts."""

import sys
import threading
import time

import pytest

from edge_sdk.errors import DeviceError
from edge_sdk.profile import energy as energies
from edge_sdk.profile import power
from edge_sdk.profile.power import PowerSampler, find_rails, power_source
from edge_sdk.profile.tegrastats import parse_tegrastats

from ...conftest import again_and_again, wait_until


def _write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


@pytest.fixture
def orin(tmp_path):
    """JetPack 5 and later: three channels, one not connected, and the sum of shunts."""
    folder = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    connected = {"in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1200}
    shared = {"in2_label": "VDD_CPU_GPU_CV", "in2_input": 5000, "curr2_input": 400}
    rest = {"in3_label": "NC", "in3_input": 0, "curr3_input": 0, "in4_input": 17, "in7_label": "sum of shunt voltages"}
    _write(folder, **connected, **shared, **rest)
    return tmp_path


def test_rails_of_jetpack_5_and_later_are_volts_times_amperes(orin):
    assert [(rail.name, rail.read_mw()) for rail in find_rails(orin)] == [("VDD_CPU_GPU_CV", 2000), ("VDD_IN", 6000)]


def test_rails_of_jetpack_4_are_read_as_they_are(tmp_path):
    folder = tmp_path / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    _write(folder, rail_name_0="POM_5V_IN", in_power0_input=1022, rail_name_1="POM_5V_GPU", in_power1_input=40,
           rail_name_2="NC", in_power2_input=0)  # fmt: skip
    assert [(rail.name, rail.read_mw()) for rail in find_rails(tmp_path)] == [("POM_5V_GPU", 40), ("POM_5V_IN", 1022)]


def test_thors_module_has_a_monitor_of_its_own_beside_the_rails(orin):
    folder = orin / "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon5"
    folder.mkdir(parents=True)
    (folder / "power1_input").write_text("31250000\n")
    assert {rail.name: rail.read_mw() for rail in find_rails(orin)}["VIN"] == 31250


def test_a_machine_without_monitors_says_so(tmp_path):
    assert find_rails(tmp_path) == []
    with power_source(tmp_path, ("no-such-tegrastats",)) as source:
        assert source is None


def _printing(*lines):
    return (sys.executable, "-uc", f"import time\nfor line in {lines!r}: print(line)\ntime.sleep(60)")


def test_where_sysfs_has_no_monitor_tegrastats_is_asked(tmp_path):
    line = "RAM 519/7607MB (lfb 61x4MB) cpu@48.9C VDD_IN 5971mW/5900mW VDD_SOC 2308mW/2300mW"
    with power_source(tmp_path, _printing(line)) as source, PowerSampler(source, interval_s=0.01) as sampler:
        assert source() == {"VDD_IN": 5971, "VDD_SOC": 2308}
        time.sleep(0.05)
    energy = sampler.energy()
    assert energy.total_rail == "VDD_IN"
    assert energy.mean_mw["VDD_IN"] == pytest.approx(5971)


def test_a_tegrastats_that_tells_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(power, "FIRST_LINE_S", 1.0)
    for command in (_printing("RAM 1/2MB"), _printing("sudo: a password is required"), (sys.executable, "-c", "")):
        with pytest.raises(DeviceError, match="prints no power rail"), power_source(tmp_path, command):
            pass


def test_torn_lines_of_tegrastats_are_passed_over_and_its_end_is_an_error(tmp_path):
    whole = "RAM 519/7607MB (lfb 61x4MB) VDD_IN 5971mW/5900mW VDD_SOC 2308mW/2300mW"
    lines = (whole, whole[:50], "no permission", "", whole.replace("5971", "6000"))
    with power_source(tmp_path, _printing(*lines)) as source, PowerSampler(source, interval_s=0.01) as sampler:
        time.sleep(0.05)
    assert set(sampler.energy().mean_mw) == {"VDD_IN", "VDD_SOC"}
    ends = (sys.executable, "-c", f"print({whole!r})")
    with power_source(tmp_path, ends) as source, pytest.raises(DeviceError, match="ended by itself"):
        again_and_again(source)


WHOLE = "RAM 519/7607MB (lfb 61x4MB) VDD_IN 5971mW/5900mW"


def test_lines_that_are_no_text_or_no_numbers_are_passed_over(tmp_path):
    endless = f"VDD_IN {'9' * 400}mW/1mW"
    lines = WHOLE.encode(), b"RAM \xff\xfe", f"RAM 1/2MB {endless}".encode(), WHOLE.replace("5971", "6000").encode()
    code = f"import os, time; [os.write(1, line + bytes([10])) for line in {lines!r}]; time.sleep(60)"
    with power_source(tmp_path, (sys.executable, "-c", code)) as source:
        wait_until(lambda: source() == {"VDD_IN": 6000})


def test_power_that_is_read_no_more_is_an_error_whatever_the_reason(tmp_path, monkeypatch):
    """It would stay at the old value for ever."""

    def broken(line):
        if "6000" in line:
            raise RuntimeError("a bug")
        return parse_tegrastats(line)

    monkeypatch.setattr(power, "parse_tegrastats", broken)
    lines = _printing(WHOLE, WHOLE.replace("5971", "6000"))
    with power_source(tmp_path, lines) as source, pytest.raises(DeviceError, match=r"is read no more .*a bug"):
        again_and_again(source)


def test_a_tegrastats_that_does_not_start_costs_the_energy_alone(tmp_path, monkeypatch):
    """As one of another architecture."""
    foreign = tmp_path / "tegrastats"
    foreign.write_bytes(b"\x7fELF of another machine")
    foreign.chmod(0o755)
    with pytest.raises(DeviceError, match="does not start"), power_source(tmp_path, (str(foreign),)):
        pass
    monkeypatch.setattr(energies, "power_source", lambda: power_source(tmp_path, (str(foreign),)))
    with pytest.warns(UserWarning, match=r"no energy: .*does not start"):
        assert energies.measured_energies([lambda: None]) == [None]


def test_energy_is_the_integral_and_idle_can_be_taken_off(orin):
    with power_source(orin) as source:
        with PowerSampler(source, interval_s=0.01) as resting:
            time.sleep(0.1)
        (orin / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input").write_text("2200\n")
        with PowerSampler(source, interval_s=0.01) as busy:
            time.sleep(0.2)
    idle, energy = resting.energy(), busy.energy()
    assert energy.total_rail == "VDD_IN"
    assert energy.mean_mw["VDD_IN"] == pytest.approx(11_000)
    assert energy.energy_mj["VDD_IN"] == pytest.approx(11_000 * energy.seconds)
    assert energy.num_samples >= 3
    assert energy.per_run_mj(10)["VDD_IN"] == pytest.approx(1100 * energy.seconds)
    assert energy.per_run_mj(10, idle)["VDD_IN"] == pytest.approx(500 * energy.seconds)  # 11 W less 6 W
    assert energy.per_run_mj(10, idle)["VDD_CPU_GPU_CV"] == pytest.approx(0, abs=1e-6)


def test_power_that_rises_is_integrated_by_trapezoids(orin):
    amperes = orin / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input"

    def rise(stop, begin):
        while not stop.is_set():
            partial = amperes.with_suffix(".new")
            partial.write_text(str(round(1000 + 2000 * (time.monotonic() - begin))))
            partial.replace(amperes)

    stop = threading.Event()
    begin = time.monotonic()
    thread = threading.Thread(target=rise, args=(stop, begin))
    thread.start()
    try:
        with power_source(orin) as source, PowerSampler(source, interval_s=0.02) as sampler:
            time.sleep(0.5)
    finally:
        stop.set()
        thread.join()
    middle = (sampler.samples[0][0] + sampler.samples[-1][0]) / 2 - begin  # 5 W, and 10 W more each second
    assert sampler.energy().mean_mw["VDD_IN"] == pytest.approx(5000 + 10_000 * middle, rel=0.05)


def test_a_monitor_that_fails_is_named(orin):
    rails = find_rails(orin)
    with power_source(orin) as source, PowerSampler(source, interval_s=0.01) as sampler:
        pass
    (orin / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_input").unlink()
    with pytest.raises(DeviceError, match=r"rail VDD_IN: .*in1_input cannot be read"):
        rails[1].read_mw()
    assert sampler.energy().num_samples >= 2
