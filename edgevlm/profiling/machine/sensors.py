"""Energy, temperature and frequency, where Linux lets a program read them.

    /sys/class/powercap/intel-rapl:N    energy of processor package N in microjoules (AMD's too)
    /sys/class/hwmon/hwmon*             voltage and current of each rail of a Jetson (INA3221)
    /sys/class/thermal/thermal_zone*    temperatures in thousandths of a degree
    /sys/devices/system/cpu             frequency of each core; how often it was slowed down

A rail has a power and no energy counter: `PowerMeter` integrates it. Source of its files: Linux,
Documentation/hwmon/ina3221.rst; of which rails count: NVIDIA Jetson Linux Developer Guide, platform
power and performance. Not tested on a Jetson.

Virtual machines have none of them, and most systems let only root read energy. None with a reason,
never 0.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYS = Path("/sys")
# Where slow-downs are not counted, a clock below this share of the earlier one is one.
SLOWED = 0.8
# Input rails of a whole module: other rails are parts of them.
MODULE_INPUTS = ("VDD_IN", "VIN", "POM_5V_IN")
METER_PERIOD_S = 0.05


@dataclass(frozen=True)
class Reading:
    """All sensors at one time; None where there is no sensor.

    `energy_uj` and `energy_ranges_uj` are of each package: a counter wraps at its range.
    """

    energy_uj: tuple[int, ...] | None
    energy_ranges_uj: tuple[int, ...]
    temperature_c: float | None
    frequency_mhz: float | None
    throttles: int | None
    load: float | None
    not_measured: dict[str, str]


def read_sensors(system: Path = SYS) -> Reading:
    """Read all sensors."""
    reasons: dict[str, str] = {}
    zones = sorted((system / "class/thermal").glob("thermal_zone*/temp"))
    degrees = [value / 1e3 for path in zones if (value := _number(path)) is not None]
    cores = system / "devices/system/cpu"
    clocks = [_number(p) for p in sorted(cores.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    known = [clock for clock in clocks if clock is not None]
    counts = [_number(p) for p in sorted(cores.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))]
    counted = [count for count in counts if count is not None]
    energy, ranges, reason = _energy(system / "class/powercap")
    if reason:
        reasons["energy"] = reason
    if not degrees:
        reasons["temperature"] = f"no temperature can be read in {system}/class/thermal"
    if not known:
        reasons["frequency"] = f"no core has a frequency in {cores}"
    if not counted and not known:
        reasons["throttled"] = "neither a count of slow-downs nor a frequency can be read"
    try:
        load: float | None = round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        load, reasons["load"] = None, "the system does not say"
    return Reading(
        energy,
        ranges,
        round(max(degrees), 1) if degrees else None,
        round(sum(known) / len(known) / 1e3, 1) if known else None,
        sum(counted) if counted else None,
        load,
        reasons,
    )


def joules(before: Reading, after: Reading) -> float | None:
    """Energy between two readings, over all packages."""
    if before.energy_uj is None or after.energy_uj is None:
        return None
    pairs = zip(before.energy_uj, after.energy_uj, before.energy_ranges_uj, strict=True)
    return sum((b - a if b >= a else b - a + most) for a, b, most in pairs) / 1e6


def throttled(before: Reading, after: Reading) -> bool | None:
    """Whether the processor was slowed down in between: counted, else by its frequency."""
    if before.throttles is not None and after.throttles is not None:
        return after.throttles > before.throttles
    if before.frequency_mhz is None or after.frequency_mhz is None:
        return None
    return after.frequency_mhz < SLOWED * before.frequency_mhz


def metered() -> Callable[[], dict[str, Any]]:
    """Begin to measure; gives what is called at the end.

    That gives `joules` and `temperature_c`, None where no sensor does, and `not_measured` with the
    reasons.
    """
    before, meter = read_sensors(), PowerMeter()
    meter.__enter__()

    def end() -> dict[str, Any]:
        meter.__exit__()
        after = read_sensors()
        counted = joules(before, after)
        energy = meter.joules if counted is None else counted
        found = {"joules": energy, "temperature_c": after.temperature_c}
        missing = {"energy": energy is None, "temperature": after.temperature_c is None}
        reasons = {name: after.not_measured.get(name, "") for name, no in missing.items() if no}
        return {**found, "not_measured": reasons}

    return end


@dataclass(frozen=True)
class Rail:
    """Files of a rail's voltage (mV) and current (mA)."""

    name: str
    volts: Path
    amperes: Path

    def watts(self) -> float | None:
        """Power now."""
        volts, amperes = _number(self.volts), _number(self.amperes)
        return None if volts is None or amperes is None else volts * amperes / 1e6


def rails(system: Path = SYS) -> tuple[Rail, ...]:
    """Rails that add up to a module: its input if that is measured, else all rails."""
    readable = []
    for folder in sorted((system / "class/hwmon").glob("hwmon*")):
        if _text(folder / "name") != "ina3221":
            continue
        for label in sorted(folder.glob("in[123]_label")):
            number = label.name[2]
            rail = Rail(_text(label), folder / f"in{number}_input", folder / f"curr{number}_input")
            if rail.name not in ("", "NC") and rail.watts() is not None:
                readable.append(rail)
    inputs = tuple(rail for rail in readable if rail.name in MODULE_INPUTS)
    return inputs or tuple(readable)


class PowerMeter:
    """Energy of rails during a `with` body: their power, twenty times a second.

    Attributes:
        joules: The energy, once the body has ended; None without rails.
    """

    def __init__(self, measured: Sequence[Rail] | None = None) -> None:
        self._rails = rails() if measured is None else tuple(measured)
        self.joules: float | None = None
        self._ended = threading.Event()

    def __enter__(self) -> PowerMeter:
        if self._rails:
            self.joules = 0.0
            self._thread = threading.Thread(target=self._integrate, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._rails:
            self._thread.join()

    def _integrate(self) -> None:
        """Between two samples the power is their mean."""
        total, at, power = 0.0, time.perf_counter(), self._watts()
        while not self._ended.wait(METER_PERIOD_S):
            now, next_power = time.perf_counter(), self._watts()
            total, at, power = total + (now - at) * (power + next_power) / 2, now, next_power
        self.joules = total + (time.perf_counter() - at) * power

    def _watts(self) -> float:
        return sum(rail.watts() or 0.0 for rail in self._rails)


def _energy(folder: Path) -> tuple[tuple[int, ...] | None, tuple[int, ...], str]:
    """Counters of the packages with their ranges, or why there are none."""
    packages = [p for p in sorted(folder.glob("*-rapl:*")) if p.name.count(":") == 1]
    packages = [p for p in packages if _text(p / "name").startswith("package")]
    if not packages:
        return None, (), f"neither energy counters (RAPL) in {folder} nor rails (INA3221)"
    energy = [_number(p / "energy_uj") for p in packages]
    ranges = [_number(p / "max_energy_range_uj") for p in packages]
    known = tuple(e for e in energy if e is not None), tuple(r for r in ranges if r is not None)
    if len(known[0]) < len(packages) or len(known[1]) < len(packages):
        return None, (), f"this user may not read energy_uj in {packages[0]}; root may"
    return *known, ""


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
