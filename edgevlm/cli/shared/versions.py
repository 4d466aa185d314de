"""`edgevlm --version`: our version and those of what it works with, without importing any."""

from __future__ import annotations

import platform
import re
from importlib import metadata

import typer

from edgevlm.registry import ENGINES
from edgevlm.version import VERSION

EXPORTING = ("torch", "transformers")


def show(asked: bool) -> None:
    """Print the versions and end, if they are asked for."""
    if asked:
        print("\n".join(lines()))
        raise typer.Exit


def lines() -> list[str]:
    """A line for this package, for Python, and for each library."""
    libraries = dict.fromkeys((*_engine_libraries(), *EXPORTING))
    return [
        f"edgevlm {VERSION}",
        f"python {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in libraries),
    ]


def _engine_libraries() -> list[str]:
    """What the engines need: the extra of an engine's name lists its library first.

    Where this package itself is not installed, an engine's own name stands for its library.
    """
    names = ENGINES.names()
    try:
        wanted = metadata.requires("edgevlm") or []
    except metadata.PackageNotFoundError:
        return names
    found = []
    for name in names:
        of_extra = (each for each in wanted if re.search(rf"extra == ['\"]{name}['\"]", each))
        libraries = (re.split(r"[^\w.-]", each)[0] for each in of_extra)
        found += [library for library in libraries if library != "edgevlm"][:1]
    return found


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"
