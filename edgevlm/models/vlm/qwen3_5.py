"""Qwen3.5: the encoder of Qwen3-VL with one level, and a decoder of gated delta rule and attention.

A picture is one view of `--size`, 512x512 pixels unless told, and stands for a grid of tokens in
the text: positions have three axes, time, height and width, whose frequencies alternate. Three of
four layers of the decoder are recurrent: they hold a matrix a head and a few rows, whatever the
length of the prompt. The others are attention with a gate, and turn a quarter of a head.

Sources: Gated DeltaNet (arXiv 2412.06464); transformers' `models/qwen3_5/modeling_qwen3_5.py`.
Limits: those of `models.shared.qwen` and `qwen_pictures`; methods that merge inside the encoder,
compare its keys or work inside the decoder are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
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
]

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
DEFAULT = (512, 512)


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a Qwen3.5 checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, a size, a processor or a decoder that the static form has not.
    """
    vision = config.vision_config
    block = vision.patch_size * vision.spatial_merge_size
    image = image_spec(vision, processor, recipe, DEFAULT, block, 0.5, 0.5)
    grid, decoder = patch_grid(vision, image), decoder_spec(config.text_config)
    items = image_items(*grid.tokens)
    mark = processor.get("image_token", IMAGE)
    return Description(
        image=image,
        view_tokens=grid.tokens[0] * grid.tokens[1],
        shape=VisualShape((grid.tokens,), decoder.width, *image.tiling),
        encoder=encoder_spec(vision, grid.height * grid.width),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=f"{START}{mark}{END}",
        visual_token=mark,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core = model.model
    tower, grid = core.visual, patch_grid(model.config.vision_config, description.image)
    return ModelParts(
        encoder=EncoderParts(
            spec=description.encoder,
            embedding=Patches(tower.patch_embed.proj, grid, learned_positions(tower, grid)),
            layers=tuple(map(RotaryLayer, tower.blocks)),
            connector=connector(grid, tower.merger),
            fold=Fold(grid),
            grid=GridTables(grid, rotary_frequencies(tower)),
        ),
        pack=nn.Identity(),
        decoder=decoder_parts(core.language_model, description.decoder),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [1, 3, h_px, w_px] -> [1, N, C]."""
    patches, sides = as_patches(pixel_values, model.config.vision_config)
    found = model.model.get_image_features(patches, sides, return_dict=True).pooler_output
    return torch.cat(tuple(found))[None]
