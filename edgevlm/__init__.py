"""edgevlm: vision-language models on phones, Jetsons and laptops, with a fixed token budget.

    import edgevlm
    bundle = edgevlm.export(edgevlm.Recipe(model="embedded", tokens=16), "tiny.edgevlm")
    model = edgevlm.load("tiny.edgevlm")
    print(model.generate("photo.jpg", "What is in this picture?").text)

Exporting needs torch (`edgevlm[onnx]`); loading and running a bundle does not.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevlm.api import Model, export, load, plan, verify
    from edgevlm.bundle.files import Bundle
    from edgevlm.errors import EdgeVLMError
    from edgevlm.recipe import Recipe

__version__ = "0.1.0"
__all__ = ["Bundle", "EdgeVLMError", "Model", "Recipe", "export", "load", "plan", "verify"]

_HOMES = {"Bundle": "bundle.files", "EdgeVLMError": "errors", "Recipe": "recipe"}


class _Package(ModuleType):
    """Keeps `edgevlm.plan` and `edgevlm.verify` functions.

    They are modules too, and Python would put a module in the function's place when it is imported.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import edgevlm` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'edgevlm' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"edgevlm.{_HOMES.get(name, 'api')}"), name)
