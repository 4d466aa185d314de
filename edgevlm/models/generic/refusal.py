"""What to do about a model type that the generic path cannot take: one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import Any

from edgevlm.errors import EdgeVLMError, PlanError
from edgevlm.libraries import first_line
from edgevlm.registry import FAMILIES


@contextmanager
def explained(config: Any, kind: str) -> Iterator[None]:
    """Say of whatever goes wrong inside the body that it is the generic path's, and what to do.

    Args:
        config: transformers' config of the model.
        kind: That of the families among which the nearest is.

    Raises:
        PlanError: With the reason, the nearest family, and where to read on.
    """
    try:
        yield
    except Exception as cause:  # transformers' own code raises anything
        reason = str(cause) if isinstance(cause, EdgeVLMError) else first_line(cause)
        raise PlanError(
            f"model_type '{config.model_type}' has no family file, and the generic path cannot"
            f" take it: {reason.rstrip('.')}; {nearest(config, kind)}, docs/add-a-family.md has an"
            " example of a file"
        ) from cause


def nearest(config: Any, kind: str) -> str:
    """The family whose encoder has the type of this one, then language model, then name."""
    own = _types(config)

    def alike(name: str) -> tuple[list[bool], float]:
        pairs = zip(own, _default_types(name, kind), strict=True)
        named = SequenceMatcher(None, name, config.model_type).ratio()
        return [bool(mine) and mine == theirs for mine, theirs in pairs], named

    name = max(FAMILIES.names(), key=alike)
    shared = [kind for kind, same in zip(own, alike(name)[0], strict=True) if same]
    if not shared:
        return f"no family has its encoder '{own[0]}' or its language model '{own[1]}'"
    return f"the nearest family is '{name}', which has a {' and a '.join(shared)} too"


def _default_types(name: str, kind: str) -> tuple[str, str]:
    """Types of a family's encoder and language model where nobody says otherwise."""
    from transformers import AutoConfig

    if kind != FAMILIES.load(name).KIND:
        return "", ""
    try:
        return _types(AutoConfig.for_model(name))
    except ImportError:  # of a library for its encoder
        return "", ""


def _types(config: Any) -> tuple[str, str]:
    tower, text = getattr(config, "vision_config", None), config.get_text_config()
    return str(getattr(tower, "model_type", "")), str(getattr(text, "model_type", ""))
