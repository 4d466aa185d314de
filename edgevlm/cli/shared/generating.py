"""`edgevlm run -o`: the options of a video, and its steps as they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgevlm.cli.shared.output import progress, say
from edgevlm.cli.shared.output import show as show_answers
from edgevlm.errors import InputError
from edgevlm.recipe import MethodChoice, leap_rule
from edgevlm.runtimes.loops.contract import Loop, RunRequest, VideoRequest

NONE = "none"  # `--rule none`: no rule, whatever the bundle has


def show(loop: Loop, asked: RunRequest, options: Mapping[str, Any]) -> None:
    """Make the video of each question, and say where it is.

    Args:
        loop: The open bundle.
        asked: What is asked of any bundle.
        options: Those of the command line, by name.
    """
    with progress() as step:
        video = VideoRequest(
            negative=options["negative"],
            guidance=options["guidance"],
            rules=_rules(options["rule"], options["leap"]),
            output=options["output"],
            force=options["force"],
            resume=options["resume"],
            on_step=step,
        )
        try:
            made = show_answers(loop.answers(replace(asked, video_request=video)), options["json"])
        except KeyboardInterrupt:
            say("the steps that are done are kept; add --resume to go on with them")
            raise
    if not made:
        raise InputError("no prompt; give --prompt TEXT")


def _rules(names: list[str] | None, leap: int | None) -> tuple[MethodChoice, ...] | None:
    """The rules of the command line; None for those of the bundle."""
    if not names and leap is None:
        return None
    chosen = [MethodChoice.parse(name) for name in names or () if name != NONE]
    return (*chosen, *leap_rule(leap))
