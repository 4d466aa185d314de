"""LLaVA-NeXT (after arXiv 2310.03744): CLIP encoder, two-layer projector, Llama or its kin.

One view is the base image; R x C is the base image followed by one grid of R*C tiles in raster
order over all tiles, as AnyRes packs it, each row closed by the learned newline (an extra row of
the embedding table). CLIP's class token goes through the encoder with the patches and is dropped
after the selected layer (`vision_feature_select_strategy` "default"); "full" keeps it as a grid of
its own in front, with the base image alone, for no grid of tiles has a place for it (transformers'
packing fails on it).

Sources: https://llava-vl.github.io/blog/2024-01-30-llava-next/ (LLaVA 1.6), CLIP (arXiv
2103.00020), transformers' `models/llava_next/modeling_llava_next.py`. Differences from the
original: the grid is fixed by the recipe and the picture fills it without padding, so nothing is
unpadded; when tokens are removed one newline at the end remains, unless the method keeps rows; a
picture may be encoded by its base image alone. Limits: no clips.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.anyres import (
    NEWLINE,
    Pack,
    base_and_tile,
    image_spec,
    newline_row,
    newline_rows,
    processor_options,
    processor_views,
    without_newlines,
)
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.towers import (
    encoder_spec,
    keeps_class_token,
    known_tower,
    left_out,
    projected,
    selected_layers,
)
from edgevlm.models.shared.views import check_still
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
]

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
TOWER = "clip_vision_model"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a LLaVA-NeXT checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, an encoder, a language model, a feature layer, a selection or a tile
            grid that the static form has not.
    """
    vision, (rows, columns) = config.vision_config, recipe.tiles
    check_still(recipe, "llava_next")
    tower = known_tower(vision, TOWER)
    image = image_spec(config, processor, recipe, tower.mean, tower.std, tower.crops)
    side, keeps_class = vision.image_size // vision.patch_size, keeps_class_token(config, tower)
    if keeps_class and image.views > 1:
        raise PlanError(
            f"tiles {rows}x{columns} need vision_feature_select_strategy 'default', the class token"
            f" of '{config.vision_feature_select_strategy}' has no place in a grid; use 1x1"
        )
    grids: tuple[tuple[int, int], ...] = (((1, 1),) if keeps_class else ()) + ((side, side),)
    if image.views > 1:
        grids += ((rows * side, columns * side),)
    decoder = decoder_spec(config.text_config)
    shape = VisualShape(grids, decoder.width, *image.tiling)
    flat: tuple[str | LayoutItem, ...] = (LayoutItem("visual", start=0, stop=shape.tokens), NEWLINE)
    return Description(
        image=image,
        view_tokens=side * side + keeps_class,
        shape=shape,
        # Where the class token stays it is a token like the others.
        encoder=encoder_spec(
            vision, selected_layers(config), side * side + keeps_class, class_token=not keeps_class
        ),
        decoder=decoder,
        full_image=flat if image.views == 1 else newline_rows(side, rows, columns),
        reduced_image=flat,
        placeholder=processor.get("image_token", "<image>"),
        processor_tokens=base_and_tile(side, keeps_class) if image.views == 1 else 0,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, vision, image = model.model, model.config.vision_config, description.image
    tower = core.vision_tower
    embedding = known_tower(vision, TOWER).embedding(tower)
    side = vision.image_size // vision.patch_size
    return ModelParts(
        encoder=projected(tower, description.encoder, embedding, core.multi_modal_projector),
        pack=Pack(image.rows, image.columns, side) if image.views > 1 else nn.Identity(),
        decoder=decoder_parts(core.language_model, description.decoder),
        table=(core.language_model.embed_tokens.weight, newline_row(core, description.decoder)),
        head=model.lm_head.weight,
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder and packing, newlines left out: [P, 3, h_px, w_px] -> [1, N, C]."""
    core, config, image = model.model, model.config, description.image
    if image.views == 1:  # the original always adds tiles, so its encoder is asked alone
        states = core.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        chosen = states[description.encoder.layers]
        drops = description.encoder.class_token
        return core.multi_modal_projector(chosen[:, 1:] if drops else chosen)
    size = torch.tensor([[image.rows * image.height, image.columns * image.width]])
    packed = core.get_image_features(pixel_values[None], size, return_dict=True)
    side = image.height // config.vision_config.patch_size
    return without_newlines(packed.pooler_output[0], image, side)
