"""What each type of answer measures, a file a type; a kind of bundle names its type (`ANSWER`).

Asking(loop, request)         asks the same thing again and again
question(asking, answers)     what was asked, for the profile
sections(measured)            the sections of a profile that this type has
call_shares(plan, calls)      the time share of each call
UNCALLED                      why an answer may not call every function
nulls(found, sustained)       why the sections of the others are null
compared(profile, request)    what a profile says and what was asked, by field
named(profile, image)         the profile with the name that the image has here
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from edgevlm.registry import KINDS


def answers_of(kind: str) -> ModuleType:
    """The module of a kind's type of answer."""
    return import_module(f"{__name__}.{KINDS.load(kind).ANSWER}")
