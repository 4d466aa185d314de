"""`edgevlm --version`: versions of edgevlm and of its libraries, without importing them."""

from __future__ import annotations

import platform
import re
from importlib import metadata

import typer

from edgevlm.registry import ENGINES
from edgevlm.version import VERSION

EXPORTING = ("torch", "transformers")


def show(requested: bool) -> None:
    """Print the versions and exit, if requested."""
    if requested:
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
    """Libraries of the engines: the extra named like an engine lists its library first.

    If this package is not installed, the name of an engine is taken for its library.
    """
    names = ENGINES.names()
    try:
        requirements = metadata.requires("edgevlm") or []
    except metadata.PackageNotFoundError:
        return names
    engine_libraries = []
    for name in names:
        of_engine = (
            requirement
            for requirement in requirements
            if re.search(rf"extra == ['\"]{name}['\"]", requirement)
        )
        libraries = (re.split(r"[^\w.-]", requirement)[0] for requirement in of_engine)
        engine_libraries += [library for library in libraries if library != "edgevlm"][:1]
    return engine_libraries


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"
