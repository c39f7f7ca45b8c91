import time

from edge_sdk.profile.conditions import INTERVAL_S, Conditions, ConditionsSampler, Extremes, held_back, over_current


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_a_jetsons_conditions_are_read_from_its_files(tmp_path):
    for name, hertz in (("cur", 1_020_000_000), ("min", 1_020_000_000), ("max", 1_020_000_000)):
        _write(tmp_path / "sys/class/devfreq/17000000.gpu" / f"{name}_freq", hertz)
    for name, kilohertz in (("cur", 1_728_000), ("min", 729_600), ("max", 1_728_000)):
        _write(tmp_path / "sys/devices/system/cpu/cpu0/cpufreq" / f"scaling_{name}_freq", kilohertz)
    zones = (("cpu-thermal", "48906"), ("cv0-thermal", "-256000"), ("PMIC-Die", "100000"), ("tj-thermal", ""))
    for i, (name, temperature) in enumerate(zones):
        _write(tmp_path / f"sys/devices/virtual/thermal/thermal_zone{i}/type", name)
        _write(tmp_path / f"sys/devices/virtual/thermal/thermal_zone{i}/temp", temperature)
    monitor = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    for n, label in ((1, "VDD_IN"), (2, "VDD_CPU_GPU_CV")):
        _write(monitor / f"in{n}_label", label)
        _write(monitor / f"curr{n}_max_alarm", int(n == 1))
    counter = tmp_path / "sys/class/hwmon/hwmon1/oc3_event_cnt"
    _write(counter, 27_390)
    cap = tmp_path / "sys/kernel/nvpmodel_emc_cap/emc_iso_cap"
    _write(cap, 2_133_000_000)
    conditions = Conditions.now(tmp_path)
    assert conditions.memory_cap_mhz == 2133
    for unlimited in (0, 2**31 - 1):
        _write(cap, unlimited)
        assert Conditions.now(tmp_path).memory_cap_mhz is None
    _write(tmp_path / "sys/kernel/nvpmodel_clk_cap/emc", 3_199_000_000)  # JetPack 6
    assert Conditions.now(tmp_path).memory_cap_mhz == 3199
    assert conditions.over_current == {"oc3": 27_390}
    assert conditions.gpu_mhz == (1020, 1020, 1020)
    assert conditions.cpu_mhz == (1728, 729, 1728)
    assert conditions.temperatures_c == {"cpu-thermal": 48.906}
    assert conditions.alarms == ["VDD_IN"]


def test_a_machine_that_tells_nothing_is_no_error(tmp_path):
    assert Conditions.now(tmp_path) == Conditions(None, None, None, {}, [])


def test_what_happens_between_is_seen(tmp_path):
    clock = tmp_path / "sys/class/devfreq/17000000.gpu"
    for name in ("cur", "min", "max"):
        _write(clock / f"{name}_freq", 1_020_000_000)
    zone = tmp_path / "sys/devices/virtual/thermal/thermal_zone0"
    _write(zone / "type", "gpu-thermal")
    _write(zone / "temp", 50_000)
    alarm = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    _write(alarm / "in1_label", "VDD_IN")
    cooling = [tmp_path / f"sys/class/thermal/cooling_device{i}" for i in range(3)]
    for device, kind in zip(cooling, ("pwm-fan", "cpufreq-cpu0", "backlight"), strict=True):
        _write(device / "type", kind)
    with ConditionsSampler(tmp_path) as sampler:
        _write(clock / "cur_freq", 510_000_000)
        _write(zone / "temp", 97_500)
        _write(alarm / "curr1_crit_alarm", 1)
        for device in cooling:
            _write(device / "cur_state", 2)
        time.sleep(3 * INTERVAL_S)
        for device in cooling:
            _write(device / "cur_state", 0)
        _write(clock / "cur_freq", 1_020_000_000)
        _write(zone / "temp", 60_000)
        _write(alarm / "curr1_crit_alarm", 0)
    worst = sampler.extremes()
    assert worst.num_samples >= 3
    assert worst.lowest_gpu_mhz == 510
    assert worst.lowest_cpu_mhz is None
    assert worst.highest_c == {"gpu-thermal": 97.5}
    heat, line = held_back(Conditions.now(tmp_path), worst)
    assert heat == "heat held the machine back during the runs: cpufreq-cpu0 was slowed down"
    assert "the GPU's clock fell to 510 MHz during the runs, below the 1020 MHz" in line
    _write(clock / "min_freq", 306_000_000)
    (heat,) = held_back(Conditions.now(tmp_path), worst)  # a clock that may vary does; the rest stays told
    assert worst.cooling == ["cpufreq-cpu0"]
    assert worst.alarms == ["VDD_IN"]


def test_over_current_between_two_looks_is_counted(tmp_path):
    """An alarm lasts milliseconds; the module's own counters keep what nobody looked at."""
    counters = [tmp_path / f"sys/class/hwmon/hwmon{i}/oc{i}_event_cnt" for i in (1, 2)]
    for counter in counters:
        _write(counter, 5)
    begin = Conditions.now(tmp_path)
    _write(counters[1], 12)
    (line,) = over_current(begin, Conditions.now(tmp_path))
    assert line.startswith("the over-current limit oc2 was met 7 times during the runs")


def test_a_measured_clock_just_below_the_lowest_is_no_alarm():
    begin = Conditions(None, None, (900, 800, 3000), {}, [])
    assert not held_back(begin, Extremes(1, None, 799, {}, []))
    assert held_back(begin, Extremes(1, None, 700, {}, []))
