"""What a method's file says of its options, for lists: names, defaults, meanings.

They are the parameters of its class and the lines below `Args:` in the class's docstring.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MethodOption:
    """An option of a method, as in `--method NAME:name=value`.

    Attributes:
        name: Its name.
        default: What holds without it; None where it says so itself, or where it must be given.
        meaning: In words.
        needed: Whether it must be given.
    """

    name: str
    default: Any
    meaning: str
    needed: bool

    def __str__(self) -> str:
        """`name`, its default and its meaning in one line."""
        default = " (needed)" if self.needed else f" ({self.default})"
        return f"{self.name}{'' if self.default is None and not self.needed else default}: " + (
            self.meaning
        )


# What a plan does with the tokens of any method of site `tokens` (edgevlm/planning/methods.py).
COMMON = (
    MethodOption("positions", "contiguous", "positions of the tokens that are kept: numbered anew,"
        " or with original those of the whole grid (unasked where a position has several axes), or"
        " with median the middle one of all that merge into a token", False),
    MethodOption("merge", "none", "with mean, each token that is not kept goes into the mean of the"
        " kept one that is most similar", False),
    MethodOption("calibrate", "none", "with size, attention to a token gets the logarithm of the"
        " number of tokens that it stands for", False),
)  # fmt: skip


def method_options(method: type, site: str, own: bool = False) -> tuple[MethodOption, ...]:
    """The options of a method's class.

    Args:
        method: `Method` of its file.
        site: Where it works; at site `tokens` its number of tokens is `--tokens`.
        own: Without `COMMON`.
    """
    meanings = _arguments(inspect.getdoc(method) or "")
    parameters = [p for p in inspect.signature(method).parameters.values() if p.name in meanings]
    listed = [
        MethodOption(
            p.name,
            None if p.default is inspect.Parameter.empty else p.default,
            meanings[p.name],
            p.default is inspect.Parameter.empty,
        )
        for p in parameters
        if site != "tokens" or p.name != "tokens"
    ]
    return (*listed, *(COMMON if site == "tokens" and not own else ()))


def _arguments(docstring: str) -> dict[str, str]:
    """Names and meanings below `Args:`, to the next section."""
    found: dict[str, str] = {}
    _, _, after = docstring.partition("\nArgs:\n")
    name = ""
    for line in after.splitlines():
        if not line.startswith("    "):
            break
        if line.startswith(" " * 8):
            found[name] += f" {line.strip()}"
        else:
            name, _, text = line.strip().partition(": ")
            found[name] = text
    return found
