"""Qwen3-VL (arXiv 2511.21631): an encoder with rotary and learned positions, DeepStack, Qwen3.

A view has 512x512 pixels unless told; frequencies of the three axes of a position alternate.
Features of three layers of the encoder, each through a connector of its own, are added to the
outputs of the first three layers of the decoder at the rows of visual tokens (DeepStack, arXiv
2406.04334). Where tokens are removed these are taken at the positions of those that stay, also
where a method merges.

Sources: arXiv 2511.21631; transformers' `models/qwen3_vl/modeling_qwen3_vl.py`. Limits: those of
`models.shared.qwen`; methods that work inside the decoder are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgevlm.graphs.parts import ModelParts
from edgevlm.models.family import Description
from edgevlm.models.shared.encoders.levels import level_inputs, level_layers
from edgevlm.models.shared.encoders.qwen import merger_connector, patch_grid
from edgevlm.models.shared.qwen import Line, own_features, reference_features
from edgevlm.models.shared.qwen_pictures import (
    Clips,
    processor_options,
    processor_views,
    timed_clip,
)
from edgevlm.recipe import Recipe

__all__ = [
    "AUTO_CLASS",
    "KIND",
    "describe",
    "parts",
    "processor_options",
    "processor_views",
    "reference_features",
    "reference_levels",
]

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
LINE = Line((512, 512), 0.5, 0.5, clips=Clips(timed_clip), learned=True)


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a Qwen3-VL checkpoint; see `Description`.

    Raises:
        PlanError: For what `Line.describe` refuses, or levels that the static form has not.
    """
    made = LINE.describe(config, processor, recipe)
    levels = len(_level_layers(config.vision_config, len(made.decoder.layers)))
    return replace(
        made,
        encoder=replace(made.encoder, level_width=made.decoder.width),
        decoder=replace(made.decoder, levels=tuple(range(levels))),
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    made, vision = LINE.parts(model, description), model.config.vision_config
    grid, mergers = patch_grid(vision, description.image), model.model.visual.deepstack_merger_list
    layers = _level_layers(vision, len(description.decoder.layers))
    levels = tuple((layer, merger_connector(grid, mergers[i])) for layer, i in layers.items())
    return replace(
        made,
        encoder=replace(made.encoder, levels=levels),
        decoder=replace(made.decoder, level_inputs=level_inputs),
    )


def reference_levels(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own levels before the last: f32 [P, 3 * depth, h_px, w_px] -> [L, P * N, C]."""
    levels = own_features(model, pixel_values, description).deepstack_features
    return torch.stack([torch.cat(tuple(level)) for level in levels])


def _level_layers(vision: Any, decoder_layers: int) -> dict[int, int]:
    """The encoder's layers whose output is a level, each with the index of its connector."""
    named = list(vision.deepstack_visual_indexes)
    return {i: named.index(i) for i in level_layers(named, vision.depth, decoder_layers)}
