"""Named devices: a TOML file each with its figures, and the source of each figure.

    name, model, os, target          text; `name` is the file's, `target` what is exported for it
    memory_bytes                     memory of the device
    app_limit_bytes                  memory that one app may use before the system kills it
    bandwidth_bytes_per_s            memory to chip, the highest
    npu, npu_tops                    the neural processor and its 10^12 operations a second

A figure without a source is left out, and the table `missing` says why; TOML has no null. Nothing
here was measured by this project.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from edgevlm.bundle.documents import DocumentError, read
from edgevlm.errors import DeviceError, RecipeError, unknown_name

FOLDER = Path(__file__).parents[1] / "named"
FIGURES = ("os", "memory_bytes", "app_limit_bytes", "bandwidth_bytes_per_s", "npu", "npu_tops")
# `vendor`: the maker's own statement; `press`: published by others, mostly the maker's figures;
# `observation`: of a user; `derived`: calculated from other figures, as `says` explains.
KINDS = ("vendor", "press", "observation", "derived")


@dataclass(frozen=True)
class FigureSource:
    """The source of a figure: one of `KINDS`, an address, and its statement in a few words."""

    kind: str
    url: str
    says: str

    def __post_init__(self) -> None:
        """Refuse a source that a reader could not check."""
        if self.kind not in KINDS:
            raise DeviceError(f"kind must be one of {', '.join(KINDS)}, got '{self.kind}'")
        if not self.url.startswith(("https://", "http://")) or not self.says.strip():
            raise DeviceError("a source needs `url`, which begins with http, and a text in `says`")


@dataclass(frozen=True)
class Device:
    """One file of `devices/named`; unknown figures are None, and `missing` has the reason.

    MB and GB are powers of ten in all of them: "8 GB" is 8 x 10^9 bytes, never more than the device
    has.
    """

    name: str
    model: str
    target: str
    os: str
    memory_bytes: int
    app_limit_bytes: int | None
    bandwidth_bytes_per_s: int | None
    npu: str | None
    npu_tops: float | None
    sources: dict[str, FigureSource]
    missing: dict[str, str]

    def __post_init__(self) -> None:
        """Each figure has a source, or else a reason why there is none."""
        for name in FIGURES:
            known = getattr(self, name) is not None
            if (name in self.sources, name in self.missing) != (known, not known):
                expected = "a source and no entry" if known else "no source and a reason"
                raise DeviceError(f"{name} needs {expected} in `missing`")
        for name in {*self.sources, *self.missing} - set(FIGURES):
            raise DeviceError(unknown_name("figure", name, FIGURES))
        sizes = (self.memory_bytes, self.app_limit_bytes, self.bandwidth_bytes_per_s, self.npu_tops)
        if min(size for size in sizes if size is not None) <= 0:
            raise DeviceError("the figures in bytes and npu_tops must be above 0")


def names() -> list[str]:
    """Names of all devices, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Device:
    """The device `name`.

    Raises:
        RecipeError: If there is no such device; the message has the nearest name.
        DeviceError: If its file is damaged; one line that names the file and the field.
    """
    if name not in names():
        raise RecipeError(unknown_name("device", name, names()))
    return load_file(FOLDER / f"{name}.toml")


def load_file(path: Path) -> Device:
    """Read one TOML file.

    Raises:
        DeviceError: If it is not TOML, has an unknown or no key, or a figure without a source.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
        device = read(Device, dict.fromkeys(FIGURES) | {"missing": {}} | document, path.name)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, DocumentError) as cause:
        text = str(cause) if isinstance(cause, DocumentError) else f"{path.name}: {cause}"
        raise DeviceError(text) from cause
    if device.name != path.stem:
        raise DeviceError(f"{path.name}: name must be the file's, got '{device.name}'")
    return device
