"""The errors a user can meet, each printed by the command line as one line.

A message says what was got, what was expected, where, and what to do. Anything that is not an
`EdgeVLMError` is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 1000  # characters of a message


class EdgeVLMError(Exception):
    """A mistake or a limit that the user can act on."""

    def __str__(self) -> str:
        """The message, cut where it repeats a value of thousands of characters."""
        return shortened(super().__str__())


class RecipeError(EdgeVLMError):
    """The request itself is wrong: an unknown name, a value out of range, options that conflict."""


class PlanError(EdgeVLMError):
    """The recipe is well formed but cannot work for this model (budget, context, grid)."""


class ModelError(EdgeVLMError):
    """The checkpoint cannot be read: missing, unsafe, unsupported or damaged."""


class TraceError(EdgeVLMError):
    """A traced graph has a symbolic dimension, or an operator that targets do not support."""


class ExportError(EdgeVLMError):
    """A target could not be written, or its artifact differs from PyTorch."""


class BundleError(EdgeVLMError):
    """A bundle is damaged, hostile, of another version, or in the way."""


class InputError(EdgeVLMError):
    """An image, video or prompt that cannot be used."""


class RuntimeLoadError(EdgeVLMError):
    """An engine is missing or cannot load an artifact."""


class DeviceError(EdgeVLMError):
    """A device cannot be reached, a run on it fails, or the file of a named device is damaged."""


def shortened(text: str, most: int = LONGEST) -> str:
    """A text of at most `most` characters: its middle is left out, as its end says what to do."""
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - end - 3]}...{text[-end:]}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line that names an unknown `kind`, the nearest known name and all the known ones."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:60], names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    shown = name if len(name) <= 60 else name[:57] + "..."
    return f"unknown {kind} '{shown}'{hint} known: {', '.join(names) or 'none'}"
