"""The folder is the registry: a plug-in is a file, found by its name and imported when asked for.

    family   edgevlm/models/<kind>/<name>.py  method   edgevlm/compress/<name>.py
    target   exporters/to_<name>.py           engine   runtimes/on_<name>.py
    dataset  evaluation/datasets/<name>.py    device   devices/<name>.py, a way to reach one

A plug-in of several files is a folder of that name; its `main` file (`target.py`, `engine.py`) has
what is asked of a plug-in. The folder `shared` of a package is code that its plug-ins have in
common. A name on the command line may use `-` where the file has `_`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from edgevlm.errors import RecipeError, RuntimeLoadError, unknown_name
from edgevlm.libraries import needs

SHARED = "shared"


@dataclass(frozen=True)
class Registry:
    """The plug-ins of one kind: modules whose names begin with `prefix`.

    Attributes:
        kind: What a message calls such a plug-in.
        package: Package that holds the plug-ins.
        prefix: Beginning of their file names.
        main: File that a plug-in of several files is asked for.
        nested: The plug-ins lie in the packages inside `package`, a folder for each kind of them.
    """

    kind: str
    package: str
    prefix: str = ""
    main: str = ""
    nested: bool = False

    def names(self) -> list[str]:
        """Names of all plug-ins, sorted, without importing any."""
        names = (name.removeprefix(self.prefix) for name in self._modules())
        return sorted(n.replace("_", "-") if self.kind == "engine" else n for n in names)

    def load(self, name: str) -> ModuleType:
        """Import the plug-in `name`.

        Raises:
            RecipeError: If there is no such plug-in; the message has the nearest name.
            RuntimeLoadError: If a library that it needs is missing; the message has the extra.
        """
        file, modules = name.replace("-", "_"), self._modules()
        if f"{self.prefix}{file}" not in modules:
            raise RecipeError(unknown_name(self.kind, name, self.names()))
        try:
            return importlib.import_module(modules[f"{self.prefix}{file}"])
        except ModuleNotFoundError as cause:
            library = str(cause.name).partition(".")[0]
            if library == "edgevlm":
                raise
            extra = file if self.prefix else "onnx"  # families and methods serve exports
            raise RuntimeLoadError(needs(f"{self.kind} '{name}'", f"'{library}'", extra)) from cause

    def _modules(self) -> dict[str, str]:
        """Import name of each plug-in, by the name of its file or folder."""
        packages = [self.package]
        if self.nested:
            packages = [path for _, path, is_package in _listed(self.package) if is_package]
        found = {}
        for package in packages:
            for name, path, is_package in _listed(package):
                if name.startswith(self.prefix) and (self.main or not is_package):
                    found[name] = f"{path}.{self.main}" if is_package else path
        return found


def _listed(package: str) -> list[tuple[str, str, bool]]:
    """Name, import name, and whether it is a package, of what a package holds but `shared`."""
    path = importlib.import_module(package).__path__
    return [
        (module.name, f"{package}.{module.name}", module.ispkg)
        for module in pkgutil.iter_modules(path)
        if module.name != SHARED and not module.name.startswith("_")
    ]


# The class of a method file for each site where the method works; the first is the default.
SITE_CLASSES = {"tokens": "Method", "vision": "EncoderMethod", "decoder": "DecoderMethod"}


def sites_of(module: ModuleType) -> list[str]:
    """Sites where the method of a file works."""
    return [site for site, name in SITE_CLASSES.items() if hasattr(module, name)]


FAMILIES = Registry("model family", "edgevlm.models", nested=True)
METHODS = Registry("method", "edgevlm.compress")
DATASETS = Registry("dataset", "edgevlm.evaluation.datasets")
TARGETS = Registry("target", "edgevlm.exporters", "to_", "target")
ENGINES = Registry("engine", "edgevlm.runtimes", "on_", "engine")
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
