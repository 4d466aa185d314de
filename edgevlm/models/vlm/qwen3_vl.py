"""Qwen3-VL (arXiv 2511.21631): an encoder with rotary and learned positions, DeepStack, Qwen3.

A picture is one view of `--size`, 512x512 pixels unless told, and stands for a grid of tokens in
the text: positions have three axes, time, height and width, whose frequencies alternate. Features
of three layers of the encoder, each through a connector of its own, are added to the outputs of the
first three layers of the decoder at the rows of visual tokens (DeepStack, arXiv 2406.04334). Where
tokens are removed these are taken at the positions of those that stay, also where a method merges.

Sources: arXiv 2511.21631; transformers' `models/qwen3_vl/modeling_qwen3_vl.py`. Limits: those of
`models.shared.qwen` and `qwen_pictures`; methods that merge inside the encoder, compare its keys or
work inside the decoder are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.encoders.levels import level_inputs, level_layers
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.qwen import (
    Fold,
    GridTables,
    Patches,
    RotaryLayer,
    connector,
    encoder_spec,
    learned_positions,
    patch_grid,
    rotary_frequencies,
)
from edgevlm.models.shared.qwen_pictures import (
    END,
    IMAGE,
    START,
    as_patches,
    image_items,
    image_spec,
    processor_options,
    processor_views,
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
DEFAULT = (512, 512)


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a Qwen3-VL checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, a size, a processor, levels or a decoder that the static form
            has not.
    """
    vision = config.vision_config
    block = vision.patch_size * vision.spatial_merge_size
    image = image_spec(vision, processor, recipe, DEFAULT, block, 0.5, 0.5)
    grid, decoder = patch_grid(vision, image), decoder_spec(config.text_config)
    levels = len(_level_layers(vision, len(decoder.layers)))
    items = image_items(*grid.tokens)
    mark = processor.get("image_token", IMAGE)
    encoder = encoder_spec(vision, grid.height * grid.width)
    return Description(
        image=image,
        view_tokens=grid.tokens[0] * grid.tokens[1],
        shape=VisualShape((grid.tokens,), decoder.width, *image.tiling),
        encoder=replace(encoder, level_width=decoder.width),
        decoder=replace(decoder, levels=tuple(range(levels))),
        full_image=items,
        reduced_image=items,
        placeholder=f"{START}{mark}{END}",
        visual_token=mark,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, vision = model.model, model.config.vision_config
    tower, grid = core.visual, patch_grid(vision, description.image)
    layers = _level_layers(vision, len(description.decoder.layers))
    mergers = {layer: tower.deepstack_merger_list[i] for layer, i in layers.items()}
    return ModelParts(
        encoder=EncoderParts(
            spec=description.encoder,
            embedding=Patches(tower.patch_embed.proj, grid, learned_positions(tower, grid)),
            layers=tuple(map(RotaryLayer, tower.blocks)),
            connector=connector(grid, tower.merger),
            fold=Fold(grid),
            grid=GridTables(grid, rotary_frequencies(tower)),
            levels=tuple((layer, connector(grid, merger)) for layer, merger in mergers.items()),
        ),
        pack=nn.Identity(),
        decoder=replace(
            decoder_parts(core.language_model, description.decoder), level_inputs=level_inputs
        ),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [1, 3, h_px, w_px] -> [1, N, C]."""
    return torch.cat(tuple(_own(model, pixel_values).pooler_output))[None]


def reference_levels(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The same for the levels before the last: [L, N, C]."""
    levels = _own(model, pixel_values).deepstack_features
    return torch.stack([torch.cat(tuple(level)) for level in levels])


def _own(model: Any, pixel_values: Tensor) -> Any:
    patches, sides = as_patches(pixel_values, model.config.vision_config)
    return model.model.get_image_features(patches, sides, return_dict=True)


def _level_layers(vision: Any, decoder_layers: int) -> dict[int, int]:
    """The encoder's layers whose output is a level, each with the index of its connector."""
    named = list(vision.deepstack_visual_indexes)
    return {i: named.index(i) for i in level_layers(named, vision.depth, decoder_layers)}
