"""Features of several depths of an encoder that go to layers of the decoder (DeepStack).

Source: arXiv 2406.04334.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgevlm.bundle.host import LEVELS
from edgevlm.errors import PlanError


def level_layers(named: Sequence[int], depth: int, decoder_layers: int) -> tuple[int, ...]:
    """The encoder's layers whose output is a level, in ascending order.

    As many as the decoder has layers to take them, as in the originals.

    Args:
        named: `deepstack_visual_indexes` of config.json.
        depth: Layers of the encoder.
        decoder_layers: Layers of the decoder.

    Raises:
        PlanError: If one is no layer, or there are more than a bundle has names for.
    """
    known = all(isinstance(i, int) and 0 <= i < depth for i in named)
    if not known or len({*named}) != len(named) or len(named) > len(LEVELS):
        raise PlanError(
            f"deepstack_visual_indexes is {list(named)}, expected at most {len(LEVELS)} of the"
            f" encoder's {depth} layers, each once; correct config.json"
        )
    return tuple(sorted(named)[:decoder_layers])


def level_inputs(visual: Tensor, levels: Tensor) -> dict[str, Any]:
    """What the originals' decoders take: rows that are visual [1, n], and levels [L, k, C]."""
    return {"visual_pos_masks": visual, "deepstack_visual_embeds": list(levels)}
