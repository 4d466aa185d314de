"""edgevlm: vision-language models on phones, Jetsons and laptops, with a fixed token budget.

    import edgevlm
    bundle = edgevlm.export(edgevlm.Recipe(model="embedded", tokens=16), "tiny.edgevlm")
    model = edgevlm.load("tiny.edgevlm")
    print(model.generate("photo.jpg", "What is in this picture?").text)

Exporting needs torch (`edgevlm[onnx]`); loading and running a bundle does not.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevlm.version import VERSION

if TYPE_CHECKING:
    from edgevlm.api import Model, export, load, plan, verify
    from edgevlm.bundle.files import Bundle
    from edgevlm.errors import EdgeVLMError
    from edgevlm.recipe import Recipe

__version__ = VERSION
__all__ = ["Bundle", "EdgeVLMError", "Model", "Recipe", "export", "load", "plan", "verify"]

_HOMES = {"Bundle": "bundle.files", "EdgeVLMError": "errors", "Recipe": "recipe"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import edgevlm` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'edgevlm' has no attribute '{name}'")
    return getattr(import_module(f"edgevlm.{_HOMES.get(name, 'api')}"), name)


def _check_links() -> None:
    """Refuse to mix two copies: the three linked folders must lie in the tree of this file.

    Where git writes links as text files, another installed copy would answer for them.
    """
    tree = Path(__file__).resolve().parents[1]
    for name in ("exporters", "runtimes", "devices"):
        spec = find_spec(f"edgevlm.{name}")
        if spec is None or not spec.origin or not Path(spec.origin).resolve().is_relative_to(tree):
            raise ImportError(
                f"'{tree}' has no link edgevlm/{name} to ../{name}, so it cannot be imported as it"
                f" is; run: pip install -e '{tree}'"
            )


_check_links()
