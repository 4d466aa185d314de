"""The folder is the registry: a plug-in is a file, found by its name and imported at first use.

    family   edgevlm/models/<kind>/<name>.py  method   edgevlm/compress/<site>/<name>.py
    target   exporters/to_<name>/             engine   runtimes/on_<name>.py
    kind     edgevlm/bundle/kinds/<name>.py   a kind of bundle
    dataset  evaluation/datasets/<name>.py    device   devices/<name>.py, a transport to devices

A plug-in of several files is a folder of that name; its `main` file (`target.py`, `engine.py`)
follows the plug-in contract. The folder `shared` of a package has code that its plug-ins share. A
name on the command line may use `-` where the file has `_`.
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
        kind: Name of such a plug-in in messages.
        package: Package that holds the plug-ins.
        prefix: Prefix of their file names.
        main: Main file of a plug-in of several files.
        dashes: Whether names are shown with `-` where files have `_`.
        nested: Whether the plug-ins are in subpackages of `package`, one for each kind of bundle.
    """

    kind: str
    package: str
    prefix: str = ""
    main: str = ""
    dashes: bool = False
    nested: bool = False

    def names(self) -> list[str]:
        """Names of all plug-ins, sorted, without importing any."""
        names = (name.removeprefix(self.prefix) for name in self._modules())
        return sorted(n.replace("_", "-") if self.dashes else n for n in names)

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
            extra = file if self.prefix else "onnx"  # families and methods are used by exports
            raise RuntimeLoadError(needs(f"{self.kind} '{name}'", f"'{library}'", extra)) from cause

    def _modules(self) -> dict[str, str]:
        """Import name of each plug-in, by the name of its file or folder."""
        packages = [self.package]
        if self.nested:
            kinds = KINDS.names()
            packages = [path for name, path, _ in _listed(self.package) if name in kinds]
        import_names = {}
        for package in packages:
            for name, path, is_package in _listed(package):
                if name.startswith(self.prefix) and (self.main or not is_package):
                    import_names[name] = f"{path}.{self.main}" if is_package else path
        return import_names


def _listed(package: str) -> list[tuple[str, str, bool]]:
    """(name, import name, whether it is a package) of each module of a package except `shared`."""
    path = importlib.import_module(package).__path__
    return [
        (module.name, f"{package}.{module.name}", module.ispkg)
        for module in pkgutil.iter_modules(path)
        if module.name != SHARED and not module.name.startswith("_")
    ]


@dataclass(frozen=True)
class SiteRegistry:
    """Plug-ins by site: a folder for each site, a file for each plug-in of the site.

    A plug-in of two sites is two files of one name.

    Attributes:
        kind: Name of such a plug-in in messages.
        package: Package that holds the sites' folders.
        preferred: Sites in the order of preference for a name without a site; other sites follow by
            name.
    """

    kind: str
    package: str
    preferred: tuple[str, ...]

    def sites(self) -> list[str]:
        """All sites, the preferred ones first."""
        ranks = {site: rank for rank, site in enumerate(self.preferred)}
        folders = [name for name, _, is_package in _listed(self.package) if is_package]
        return sorted(folders, key=lambda site: (ranks.get(site, len(ranks)), site))

    def names(self, site: str | None = None) -> list[str]:
        """Names of the plug-ins of one site, or of all, sorted, without importing any."""
        sites = self.sites() if site is None else [site]
        return sorted({name for site in sites for name in self._at(site).names()})

    def sites_of(self, name: str) -> list[str]:
        """Sites where the plug-in works, the preferred one first, without importing it.

        Raises:
            RecipeError: If there is no such plug-in; the message has the nearest name.
        """
        file = name.replace("-", "_")
        sites = [site for site in self.sites() if file in self.names(site)]
        if not sites:
            raise RecipeError(unknown_name(self.kind, name, self.names()))
        return sites

    def site_of(self, name: str, requested: str | None = None) -> str:
        """The site of the plug-in: the requested one, or the preferred one.

        Raises:
            RecipeError: If there is no such plug-in, or it does not work at the requested site.
        """
        sites = self.sites_of(name)
        if requested not in (None, *sites):
            raise RecipeError(
                f"{self.kind} '{name}' works at site {' and '.join(map(repr, sites))},"
                f" not '{requested}'"
            )
        return requested or sites[0]

    def load(self, name: str, site: str | None = None) -> ModuleType:
        """Import the plug-in `name` of a site, or of its preferred site.

        Raises:
            RecipeError: If there is no such plug-in, or it does not work at the site.
            RuntimeLoadError: If a library that it needs is missing; the message has the extra.
        """
        return self._at(self.site_of(name, site)).load(name)

    def _at(self, site: str) -> Registry:
        return Registry(self.kind, f"{self.package}.{site}")


KINDS = Registry("kind of bundle", "edgevlm.bundle.kinds")
FAMILIES = Registry("model family", "edgevlm.models", nested=True)
METHODS = SiteRegistry("method", "edgevlm.compress", ("tokens", "vision", "decoder", "input"))
DATASETS = Registry("dataset", "edgevlm.evaluation.datasets")
TARGETS = Registry("target", "edgevlm.exporters", "to_", "target")
ENGINES = Registry("engine", "edgevlm.runtimes", "on_", "engine", dashes=True)
PIPELINES = Registry("pipeline", "edgevlm.models.diffusion")
SAMPLERS = Registry("sampler", "edgevlm.runtimes.steps.samplers")
RULES = Registry("rule", "edgevlm.runtimes.steps.rules", dashes=True)
DEVICES = Registry("device", "edgevlm.devices")


def engine_for(target: str) -> str:
    """Name of the engine of the highest rank among those that run `target` here.

    Raises:
        RuntimeLoadError: If there is none; the message has each engine's reason.
    """
    ranked, reasons = list[tuple[int, str]](), list[str]()
    for name in ENGINES.names():
        try:
            engine = ENGINES.load(name).Engine
        except RuntimeLoadError as cause:
            reasons.append(f"; {cause}")
            continue
        if target in engine.targets:
            if reason := engine.unavailable():
                reasons.append(f"; {reason}")
            else:
                ranked.append((-engine.rank, name))
    if not ranked:
        raise RuntimeLoadError(f"no engine here runs target '{target}'" + "".join(reasons))
    return min(ranked)[1]
