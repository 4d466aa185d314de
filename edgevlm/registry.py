"""The folder is the registry: a plug-in is a file, found by its name and imported when asked for.

    family   edgevlm/models/<name>.py         method   edgevlm/compress/<name>.py
    target   exporters/to_<name>.py           engine   runtimes/on_<name>.py
    dataset  edgevlm/datasets/<name>.py       device   devices/<name>.py, a way to reach one

Files that begin with `_` are shared code of their folder, not plug-ins. A name on the command line
may use `-` where the file has `_`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from edgevlm.errors import RecipeError, RuntimeLoadError, unknown_name


@dataclass(frozen=True)
class Registry:
    """The plug-ins of one kind: modules of `package` whose names begin with `prefix`."""

    kind: str
    package: str
    prefix: str = ""

    def names(self) -> list[str]:
        """Names of all plug-ins, sorted, without importing any."""
        path = importlib.import_module(self.package).__path__
        found = (module.name for module in pkgutil.iter_modules(path) if not module.ispkg)
        return sorted(
            name.removeprefix(self.prefix).replace("_", "-")
            if self.kind == "engine"
            else name.removeprefix(self.prefix)
            for name in found
            if name.startswith(self.prefix) and not name.startswith("_")
        )

    def load(self, name: str) -> ModuleType:
        """Import the plug-in `name`.

        Raises:
            RecipeError: If there is no such plug-in; the message has the nearest name.
            RuntimeLoadError: If a library that it needs is missing; the message has the extra.
        """
        file = name.replace("-", "_")
        if file not in (known.replace("-", "_") for known in self.names()):
            raise RecipeError(unknown_name(self.kind, name, self.names()))
        try:
            return importlib.import_module(f"{self.package}.{self.prefix}{file}")
        except ModuleNotFoundError as cause:
            library = str(cause.name).partition(".")[0]
            if library == "edgevlm":
                raise
            extra = file if self.prefix else "onnx"  # families and methods serve exports
            raise RuntimeLoadError(
                f"{self.kind} '{name}' needs '{library}'; pip install 'edgevlm[{extra}]'"
            ) from cause


# The class of a method file for each site where the method works; the first is the default.
SITE_CLASSES = {"tokens": "Method", "vision": "EncoderMethod", "decoder": "DecoderMethod"}


def sites_of(module: ModuleType) -> list[str]:
    """Sites where the method of a file works."""
    return [site for site, name in SITE_CLASSES.items() if hasattr(module, name)]


FAMILIES = Registry("model family", "edgevlm.models")
METHODS = Registry("method", "edgevlm.compress")
DATASETS = Registry("dataset", "edgevlm.datasets")
TARGETS = Registry("target", "edgevlm.exporters", "to_")
ENGINES = Registry("engine", "edgevlm.runtimes", "on_")
DEVICES = Registry("device", "edgevlm.devices")


def engine_for(target: str) -> str:
    """Name of the first engine that is installed and runs `target`.

    Engines are named after the target that they run: those of another one are not asked.

    Raises:
        RuntimeLoadError: If there is none; the message has each engine's own reason.
    """
    reasons, others = [], tuple(other for other in TARGETS.names() if other != target)
    for name in ENGINES.names():
        if name.startswith(others) and not name.startswith(target):
            continue
        try:
            if target in ENGINES.load(name).TARGETS:
                return name
        except RuntimeLoadError as cause:
            reasons.append(f"; {cause}")
    raise RuntimeLoadError(f"no engine here runs target '{target}'" + "".join(reasons))
