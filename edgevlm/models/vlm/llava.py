"""LLaVA 1.5 (arXiv 2310.03744) and its kin: CLIP or SigLIP, two-layer projector, Llama or its kin.

A picture is one view. CLIP's class token goes through the encoder with the patches and is dropped
after the selected layer (`vision_feature_select_strategy` "default"), or is a visual token like
the others, the first one ("full").

Source: transformers' `models/llava/modeling_llava.py`. Limits: no tiles and no clips; no picture
that the processor fills up to a square first (`do_pad`); one selected layer, not several.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.embedders import patches_a_side, pooled_view, square_image
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_view, fit
from edgevlm.models.shared.towers import (
    TOWERS,
    encoder_spec,
    keeps_class_token,
    known_tower,
    left_out,
    projected,
    selected_layers,
)
from edgevlm.models.shared.views import check_one_view
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


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a LLaVA checkpoint; see `Description`.

    Raises:
        PlanError: For tiles, a clip, an encoder, a language model, a feature layer, a selection or
            a preprocessing that the static form has not.
    """
    check_one_view(recipe, "llava")
    vision = config.vision_config
    tower = known_tower(vision, *TOWERS)
    keeps_class = keeps_class_token(config, tower)
    check_view(processor, vision.image_size, tower.crops)
    if processor.get("do_pad"):
        raise PlanError(
            "the image processor has do_pad true, which fills a picture up to a square, and a"
            " bundle crops or stretches it; set do_pad false in preprocessor_config.json"
        )
    side = patches_a_side(vision)
    shape = fit(processor, tower.crops)
    image = square_image(vision.image_size, processor, 3, tower.mean, tower.std, shape)
    grids: tuple[tuple[int, int], ...] = (((1, 1),) if keeps_class else ()) + ((side, side),)
    tokens = side * side + keeps_class
    dropped = tower.class_token and not keeps_class
    decoder = decoder_spec(config.text_config)
    items = (LayoutItem("visual", start=0, stop=tokens),)
    return Description(
        image=image,
        view_tokens=tokens,
        shape=VisualShape(grids, decoder.width),
        # A class token that stays is a token like the others.
        encoder=encoder_spec(vision, selected_layers(config), tokens, class_token=dropped),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=processor.get("image_token", "<image>"),
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, spec = model.model, description.encoder
    tower = core.vision_tower
    embedding = known_tower(model.config.vision_config, *TOWERS).embedding(tower)
    return ModelParts(
        encoder=projected(tower, spec, embedding, core.multi_modal_projector),
        pack=nn.Identity(),
        decoder=decoder_parts(core.language_model, description.decoder),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [1, 3, h_px, w_px] -> [1, N, C]."""
    views = model.model.get_image_features(pixel_values, return_dict=True).pooler_output
    return torch.cat(list(views))[None]


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """None: the model's own processor makes one view of every picture."""
    return {}


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor."""
    return pooled_view(processor, picture)
