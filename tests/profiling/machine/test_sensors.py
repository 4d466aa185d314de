"""Sensors on a made-up /sys, and on a machine without any."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from edgevlm.profiling.machine import sensors


@pytest.fixture
def system(tmp_path):
    """A function that writes files of /sys, and the folder."""

    def write(**files):
        for name, value in files.items():
            path = tmp_path / name.replace("__", "/").replace("_at_", ":").replace("_to_", "-")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        return tmp_path

    return write


RAPL = "class__powercap__intel_to_rapl_at_"
CORE = "devices__system__cpu__cpu0__"


def package(number, joules, name="package-0", most=10**9):
    folder = f"{RAPL}{number}__"
    return {
        f"{folder}energy_uj": joules, f"{folder}name": name, f"{folder}max_energy_range_uj": most
    }  # fmt: skip


def test_no_sensor_is_none_with_a_reason(tmp_path):
    found = sensors.read_sensors(tmp_path)
    assert (found.energy_uj, found.temperature_c, found.frequency_mhz) == (None, None, None)
    assert set(found.not_measured) >= {"energy", "temperature", "frequency", "throttled"}
    assert sensors.joules(found, found) is None
    assert sensors.throttled(found, found) is None


def test_energy_of_all_packages_and_past_the_end_of_a_counter(system):
    path = system(**package(0, 5_000_000), **package(1, 999_000_000, "package-1"))
    before = sensors.read_sensors(path)
    # Parts of a package, and the whole platform, would be counted twice.
    system(**package(0, 7_500_000), **package(1, 1_000_000, "package-1"),
           **package(2, 10**8, "psys"), **package("0_at_0", 10**8, "core"))  # fmt: skip
    after = sensors.read_sensors(path)
    assert before.energy_uj == (5_000_000, 999_000_000)
    assert sensors.joules(before, after) == pytest.approx(2.5 + 2.0)


def test_energy_that_only_root_may_read(system):
    path = system(**package(0, "no number"))
    found = sensors.read_sensors(path)
    assert found.energy_uj is None
    assert "this user may not read energy_uj" in found.not_measured["energy"]


def test_temperature_and_frequency(system):
    path = system(
        class__thermal__thermal_zone0__temp=41_000, class__thermal__thermal_zone1__temp=63_500,
        **{f"{CORE}cpufreq__scaling_cur_freq": 2_400_000},
    )  # fmt: skip
    found = sensors.read_sensors(path)
    assert (found.temperature_c, found.frequency_mhz) == (63.5, 2400.0)
    assert "temperature" not in found.not_measured
    assert sensors.throttled(found, found) is False
    assert sensors.throttled(found, replace(found, frequency_mhz=1800.0)) is True


def test_counted_slow_downs_say_more_than_a_frequency(system):
    counter = f"{CORE}thermal_throttle__core_throttle_count"
    path = system(**{counter: 3, f"{CORE}cpufreq__scaling_cur_freq": 3_000_000})
    before = sensors.read_sensors(path)
    slow = replace(before, frequency_mhz=100.0)
    assert sensors.throttled(before, slow) is False
    system(**{counter: 4})
    assert sensors.throttled(before, sensors.read_sensors(path)) is True


@pytest.fixture
def jetson(tmp_path):
    """A function that writes rails (number, label, mV, mA) of one chip into a made-up /sys."""

    def write(*found, chip="hwmon3"):
        folder = tmp_path / "class" / "hwmon" / chip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text("ina3221\n")
        for number, label, millivolts, milliamperes in found:
            (folder / f"in{number}_label").write_text(f"{label}\n")
            (folder / f"in{number}_input").write_text(f"{millivolts}\n")
            (folder / f"curr{number}_input").write_text(f"{milliamperes}\n")
        return tmp_path

    return write


def test_the_input_of_a_module_is_all_of_it(jetson):
    path = jetson((1, "VDD_IN", 5000, 2000), (2, "VDD_CPU_GPU_CV", 5000, 900))
    (found,) = sensors.rails(path)
    assert (found.name, found.watts()) == ("VDD_IN", pytest.approx(10.0))


def test_without_it_every_rail_counts(jetson):
    jetson((1, "VDD_GPU_SOC", 12000, 500), (2, "VDD_CPU_CV", 12000, 250), (3, "NC", 0, 0))
    path = jetson((1, "VIN_SYS_5V0", 5000, 1000), chip="hwmon4")
    assert sum(rail.watts() for rail in sensors.rails(path)) == pytest.approx(6 + 3 + 5)


def test_a_meter_adds_power_up(jetson):
    path = jetson((1, "VDD_IN", 5000, 2000))
    started = time.perf_counter()
    with sensors.PowerMeter(sensors.rails(path)) as meter:
        time.sleep(0.3)
        jetson((1, "VDD_IN", 5000, 4000))
        time.sleep(0.3)
    took = time.perf_counter() - started
    assert meter.joules == pytest.approx(10 * 0.3 + 20 * (took - 0.3), rel=0.25)


def test_no_rails_no_energy(tmp_path):
    with sensors.PowerMeter(sensors.rails(tmp_path)) as meter:
        pass
    assert meter.joules is None
