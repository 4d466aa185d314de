"""Qwen2.5-VL (arXiv 2502.13923): an encoder with windows and rotary positions, Qwen2 with M-RoPE.

A picture is one view of `--size`, 448x448 pixels unless told, and stands for a grid of tokens in
the text: positions have three axes, time, height and width. All layers of the encoder but a few see
windows of 112 pixels alone, which are of one size where a picture's sides are multiples of that.

Sources: arXiv 2502.13923, section 2.1; transformers' `models/qwen2_5_vl/modeling_qwen2_5_vl.py`.
Limits: those of `models.shared.qwen` and `qwen_pictures`; methods that merge inside the encoder or
compare its keys are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.qwen import (
    Connector,
    Fold,
    GridTables,
    Patches,
    PatchGrid,
    RotaryLayer,
    encoder_spec,
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
from edgevlm.models.shared.towers import CLIP_MEAN, CLIP_STD
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
DEFAULT = (448, 448)


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a Qwen2.5-VL checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, a size, a processor or a decoder that the static form has not.
    """
    vision = config.vision_config
    image = image_spec(
        vision, processor, recipe, DEFAULT, _window_pixels(vision), CLIP_MEAN, CLIP_STD
    )
    grid, full = _grid(vision, image), vision.fullatt_block_indexes
    decoder = decoder_spec(config.text_config)
    items = image_items(*grid.tokens)
    mark = processor.get("image_token", IMAGE)
    return Description(
        image=image,
        view_tokens=grid.tokens[0] * grid.tokens[1],
        shape=VisualShape((grid.tokens,), decoder.width, *image.tiling),
        encoder=encoder_spec(
            vision, grid.height * grid.width, first=0 in full, last=vision.depth - 1 in full
        ),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=f"{START}{mark}{END}",
        visual_token=mark,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, vision = model.model, model.config.vision_config
    tower, grid = core.visual, _grid(vision, description.image)
    full, merger = vision.fullatt_block_indexes, tower.merger
    return ModelParts(
        encoder=EncoderParts(
            spec=description.encoder,
            embedding=Patches(tower.patch_embed.proj, grid),
            layers=tuple(
                RotaryLayer(layer, 1 if index in full else grid.windows)
                for index, layer in enumerate(tower.blocks)
            ),
            connector=Connector(grid, merger.ln_q, merger.mlp[0], merger.mlp[2]),
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


def _window_pixels(vision: Any) -> int:
    """Pixels of a window's side, of which the sides of a picture must be multiples.

    Raises:
        PlanError: If a window has no block of patches.
    """
    block = vision.patch_size * vision.spatial_merge_size
    if vision.window_size < block:
        raise PlanError(
            f"window_size {vision.window_size} is less than a block of {block} pixels; correct"
            " config.json"
        )
    return int(vision.window_size // block * block)


def _grid(vision: Any, image: ImageSpec) -> PatchGrid:
    side, merge = vision.patch_size, vision.spatial_merge_size
    window = vision.window_size // (side * merge)
    return PatchGrid(image.height // side, image.width // side, merge, window)
