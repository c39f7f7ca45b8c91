"""Lines in the forms of the L4T releases; the values are made up."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import DeviceError
from edge_sdk.profile.tegrastats import parse_tegrastats

XAVIER_32 = (
    "RAM 512/15800MB (lfb 3600x4MB) SWAP 0/7900MB (cached 0MB) CPU [5%@2265,0%@2265,off,off] EMC_FREQ 1%@2133 "
    "GR3D_FREQ 42%@1377 APE 150 MTS fg 0% bg 0% AO@26.5C GPU@28C Tdiode@31.25C PMIC@100C CPU@27.5C thermal@27.45C "
    "GPU 1155/1100 CPU 385/380 SOC 2504/2503 CV 0/0 VDDRQ 192/190 SYS5V 2692/2690"
)
ORIN_35 = (
    "03-01-2023 10:20:30 RAM 2300/30536MB (lfb 5300x4MB) SWAP 0/15268MB (cached 0MB) CPU [3%@729,off] EMC_FREQ "
    "0%@204 GR3D_FREQ 0%@0 GR3D2_FREQ 0%@0 VIC_FREQ 115 APE 233 CV0@-256C CPU@41.4C GPU@-256C tj@41.6C "
    "VDD_GPU_SOC 2390mW/2380mW VDD_CPU_CV 796mW/790mW VIN_SYS_5V0 3522mW/3520mW NC 0mW/0mW VDDQ_VDD2_1V8AO "
    "301mW/300mW NC 0mW/0mW"
)
NANO_36 = (
    "04-01-2026 01:02:03 RAM 519/7607MB (lfb 61x4MB) CPU [0%@1728,9%@1728] EMC_FREQ 0%@3199 GR3D_FREQ 97%@[1018] "
    "NVDEC off VIC off OFA off APE 200 cpu@48.9C gpu@49.5C tj@49.5C VDD_IN 5971mW/5900mW VDD_CPU_GPU_CV "
    "1669mW/1600mW VDD_SOC 2308mW/2300mW"
)
THOR_38 = (
    "04-01-2026 01:02:03 RAM 9000/125772MB (lfb 34x4MB) CPU [0%@972,8%@972] EMC_FREQ 0%@2750 GR3D_FREQ "
    "@[314,314,314] NVENC0_FREQ @314 VIC off APE 300 cpu@37.3C tj@38.8C gpu@38.8C VDD_GPU 1962mW/1960mW "
    "VDD_CPU_SOC_MSS 5887mW/5880mW VIN_SYS_5V0 5635mW/5630mW VIN 19780mW/19700mW"
)
ORIN_39 = (
    "07-01-2026 09:08:07 RAM 20000/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 GR3D_FREQ "
    "12%@[1300,1300] NVENC0 off NVDLA0 off PVA0_FREQ off APE 174 cpu@52.9C/52.9C gpu@47.6C/47.6C VDD_GPU_SOC "
    "5139mW/5100mW/5200mW VDD_CPU_CV 3268mW/3200mW/3300mW VIN_SYS_5V0 5500mW/5400mW/5600mW"
)
OLD_NANO = (
    "RAM 1500/3964MB (lfb 2x1MB) IRAM 0/252kB(lfb 252kB) CPU [2%@102,off,off,off] EMC_FREQ 0% GR3D_FREQ 37% "
    "PLL@30C CPU@32.5C PMIC@100C GPU@31C AO@38.5C thermal@31.75C POM_5V_IN 1022/1022 POM_5V_GPU 40/40 POM_5V_CPU "
    "123/123"
)


@pytest.mark.parametrize(
    ("line", "ram", "cpu", "gpu", "memory"),
    [
        (XAVIER_32, (512, 15800), (5, 0), (42, (1377,)), (1, 2133)),
        (ORIN_35, (2300, 30536), (3,), (0, (0,)), (0, 204)),
        (NANO_36, (519, 7607), (0, 9), (97, (1018,)), (0, 3199)),
        (THOR_38, (9000, 125772), (0, 8), (None, (314, 314, 314)), (0, 2750)),
        (ORIN_39, (20000, 62817), (23, 10), (12, (1300, 1300)), (3, 3199)),
        (OLD_NANO, (1500, 3964), (2,), (37, ()), (0, None)),
    ],
)
def test_load_and_clocks(line, ram, cpu, gpu, memory):
    found = parse_tegrastats(line)
    assert (found.ram_used_mb, found.ram_total_mb) == ram
    assert found.cpu_percent == cpu
    assert (found.gpu_percent, found.gpu_mhz) == gpu
    assert (found.memory_percent, found.memory_mhz) == memory


@pytest.mark.parametrize(
    ("line", "power"),
    [
        (XAVIER_32, {"GPU": 1155, "CPU": 385, "SOC": 2504, "CV": 0, "VDDRQ": 192, "SYS5V": 2692}),
        (ORIN_35, {"VDD_GPU_SOC": 2390, "VDD_CPU_CV": 796, "VIN_SYS_5V0": 3522, "VDDQ_VDD2_1V8AO": 301}),
        (NANO_36, {"VDD_IN": 5971, "VDD_CPU_GPU_CV": 1669, "VDD_SOC": 2308}),
        (THOR_38, {"VDD_GPU": 1962, "VDD_CPU_SOC_MSS": 5887, "VIN_SYS_5V0": 5635, "VIN": 19780}),
        (ORIN_39, {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500}),
        (OLD_NANO, {"POM_5V_IN": 1022, "POM_5V_GPU": 40, "POM_5V_CPU": 123}),
    ],
)
def test_power_by_rail(line, power):
    assert parse_tegrastats(line).power_mw == power


def test_temperatures_by_zone_without_those_switched_off():
    assert parse_tegrastats(ORIN_35).temperature_c == {"cpu": 41.4, "tj": 41.6}
    assert parse_tegrastats(ORIN_39).temperature_c == {"cpu": 52.9, "gpu": 47.6}
    zones = {"ao": 26.5, "gpu": 28, "tdiode": 31.25, "pmic": 100, "cpu": 27.5, "thermal": 27.45}
    assert parse_tegrastats(XAVIER_32).temperature_c == zones


@pytest.mark.parametrize("line", ["", "tegrastats: command not found", "RAM", "RAM 5/MB", "\x00\xff", "RAM 1/2GB"])
def test_what_is_no_line_is_refused(line):
    with pytest.raises(DeviceError, match="not a line of tegrastats"):
        parse_tegrastats(line)


@given(st.sampled_from([XAVIER_32, ORIN_35, NANO_36, THOR_38, ORIN_39, OLD_NANO]), st.integers(0, 400))
def test_a_torn_line_is_read_as_far_as_it_goes_or_refused(line, end):
    try:
        found = parse_tegrastats(line[:end])
    except DeviceError:
        return
    whole = parse_tegrastats(line)
    assert found.ram_total_mb == whole.ram_total_mb
    # A value that was torn off may be another, but never one of a rail or zone that the line does not have.
    assert set(found.power_mw) <= set(whole.power_mw)
    assert set(found.temperature_c) <= set(whole.temperature_c)


@given(st.text())
def test_any_text_is_read_or_refused(text):
    with suppress(DeviceError):
        parse_tegrastats(text)
