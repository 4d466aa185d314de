"""Granite Docling (granite-for-docling-500m and -2b): SigLIP, DeepStack, Granite.

A page is one tile, or R x C tiles followed by the whole page, each 512 pixels square and named by a
marker. A tile is 64 tokens, or 256 by the fine route, which `fine_route` of the checkpoint's image
processor asks for. Features of three layers of the encoder, each through a connector of its own,
are added to the outputs of the first three layers of the decoder at the rows of visual tokens
(DeepStack, arXiv 2406.04334). Where tokens are removed these are taken at the positions of those
that stay, also where a method merges.

Source: transformers' `models/granite_docling/modeling_granite_docling.py`. Limits: one route a
bundle, so the router that chooses one for a page is left out. No clips; methods inside the decoder
are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image
from torch import nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.encoders.granite_docling import (
    encoder_parts,
    levels_of,
    reference_features,
    reference_levels,
)
from edgevlm.models.shared.encoders.levels import level_inputs
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_view
from edgevlm.models.shared.tiles.marked import marked_tiles, view_item
from edgevlm.models.shared.towers import CLIP_MEAN, CLIP_STD, encoder_spec
from edgevlm.models.shared.views import check_still, image_of
from edgevlm.recipe import Recipe

__all__ = [
    "AUTO_CLASS",
    "KIND",
    "describe",
    "left_out",
    "parts",
    "processor_options",
    "processor_views",
    "reference_features",
    "reference_levels",
]

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
IMAGE, FAKE, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
# The tokenizer has <row_1_col_1> to <row_16_col_16>.
MARKERS = 16


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a Granite Docling checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, a processor, levels or a decoder that the static form has not.
    """
    vision, (rows, columns) = config.vision_config, recipe.tiles
    check_still(recipe, config.model_type)
    check_view(processor, vision.image_size)
    most = processor.get("max_patches", 32)
    if rows * columns > most or max(rows, columns) > MARKERS:
        raise PlanError(
            f"tiles {rows}x{columns} are more than the model takes, {most} in all and {MARKERS} a"
            " side; choose fewer"
        )
    patches, scale = vision.image_size // vision.patch_size, _scale(vision, processor)
    if patches % scale:
        raise PlanError(f"{patches} patches a side do not divide by the scale factor {scale}")
    image = image_of(processor, recipe, (vision.image_size,) * 2, "last", CLIP_MEAN, CLIP_STD)
    side, decoder = patches // scale, decoder_spec(config.text_config)
    levels = len(levels_of(vision, len(decoder.layers)))
    encoder = encoder_spec(vision, vision.num_hidden_layers, patches**2)
    items = _page(image, side**2)
    return Description(
        image=image,
        view_tokens=side**2,
        shape=VisualShape(((side, side),) * image.views, decoder.width, *image.tiling),
        encoder=replace(encoder, level_width=decoder.width),
        decoder=replace(decoder, levels=tuple(range(levels))),
        full_image=items,
        reduced_image=items,
        placeholder=processor.get("image_token", IMAGE),
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, decoder = model.model, decoder_parts(model.model.text_model, description.decoder)
    return ModelParts(
        encoder=encoder_parts(model, description),
        pack=nn.Identity(),
        decoder=replace(decoder, level_inputs=level_inputs),
        table=(core.text_model.embed_tokens.weight,),
        head=model.lm_head.weight,
        logit_scale=1 / model.config.text_config.logits_scaling,
    )


def left_out(config: Any, all_layers: bool) -> tuple[str, ...]:
    """Weights of the router that asks for the fine route."""
    return ("model.density_router.",)


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """Options of the model's own processor for this grid: the picture's shape does the rest."""
    tiles = image.rows * image.columns
    cut = {"crop_to_patches": tiles > 1, "min_patches": tiles, "max_patches": tiles}
    return cut | {"dense_max_patches": 0}  # without its rule for more tiles than that


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The views f32 [P, 3, h_px, w_px] of the model's own processor."""
    return processor(picture, return_tensors="np", **processor_options(image))["pixel_values"][0]


def _scale(vision: Any, processor: dict[str, Any]) -> int:
    """Patches of a side that become a token: half as many on the fine route.

    Raises:
        PlanError: If the model has not that route.
    """
    if not processor.get("fine_route", False):
        return int(vision.scale_factor)
    if not vision.use_fine_route:
        raise PlanError(
            "the image processor has fine_route true, and use_fine_route of config.json is false;"
            " set fine_route false in preprocessor_config.json"
        )
    return int(vision.scale_factor // 2)


def _page(image: ImageSpec, tokens: int) -> tuple[str | LayoutItem, ...]:
    """The sequence of one picture, each view behind its marker."""
    tiles = marked_tiles(image, tokens, f"{FAKE}<row_{{row}}_col_{{column}}>", "\n")
    last = view_item(image.views - 1, tokens)
    return (*tiles, f"\n{FAKE}{GLOBAL}", last, FAKE) if image.views > 1 else tuple(tiles)
