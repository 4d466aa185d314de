"""What methods of site `vision`, and signals of the encoder, ask of a vision encoder."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.errors import PlanError
from edgevlm.graphs.parts import EncoderSpec


def check_mergeable(name: str, encoder: EncoderSpec) -> None:
    """Refuse a method of site `vision` where tokens cannot merge between the encoder's layers.

    Raises:
        PlanError: With the family's reason.
    """
    if encoder.unmergeable:
        raise PlanError(
            f"{name} at site vision merges tokens between the encoder's layers, and here they"
            f" cannot: {encoder.unmergeable}; take a method of site tokens"
        )


def check_frames(name: str, encoder: EncoderSpec, frames: int) -> None:
    """Refuse to join frames where there are none with a class token each.

    Raises:
        PlanError: Saying where it works.
    """
    if frames < 2 or not encoder.class_token:
        raise PlanError(
            f"{name} at site vision joins the frames of a clip whose embedding is the mean of"
            " theirs, as CLIP's with --frames F; this recipe has none"
        )


def clip_groups(name: str, encoder: EncoderSpec) -> int:
    """Groups of frames of an encoder that sees a clip at once.

    Raises:
        PlanError: If it sees pictures or frames alone.
    """
    if encoder.groups == 1:
        raise PlanError(
            f"{name} keeps the key frame of a clip that an encoder attends over at once, such as"
            " VideoMAE's, and this one sees pictures or frames alone; take another method"
        )
    return encoder.groups


def check_signals(name: str, signals: Sequence[str], encoder: EncoderSpec) -> None:
    """Refuse a method that needs a signal which the encoder cannot give.

    Raises:
        PlanError: With the family's reason.
    """
    reason = next(((s, why) for s, why in encoder.lacking if s in signals), None)
    if reason is not None:
        raise PlanError(
            f"{name} needs the signal '{reason[0]}', which this encoder cannot give: {reason[1]};"
            " take another method"
        )
