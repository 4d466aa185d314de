"""The texts that tokenizers are trained on: those that every Python brings."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path


def texts(tiny: bool) -> Iterator[str]:
    """The files of Python's standard library, or a few of them."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    for pattern in ["pydoc_data/*.py"] if tiny else ["*.py", "[a-z]*/*.py"]:
        for file in sorted(stdlib.glob(pattern)):
            if file.parent.name != "site-packages":
                yield file.read_text(encoding="utf-8", errors="ignore")
