"""FastVLM (arXiv 2412.13303): FastViTHD, a convolutional encoder of timm, two layers, and Qwen2.

A picture is one view, 1,024 pixels a side as published, whose side becomes a 64th. Source:
transformers' `models/fast_vlm/modeling_fast_vlm.py`; timm's `models/fastvit.py`. Limits: needs timm
and torchvision; no tiles and no clips; the encoder is one block of 490 MB in float32, and methods
that read or merge its tokens are refused, for it has images of channels between its layers.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from edgevlm.bundle.host import LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.embedders import square_image
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_view, fit, sides
from edgevlm.models.shared.siglip import processor_options, processor_views, reference_features
from edgevlm.models.shared.towers import TimmTower, check_timm, whole_spec
from edgevlm.models.shared.views import check_one_view
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
TOWER, STRIDE = "fastvit_mci3", 64
SIDE = 1024
PLAIN = "its encoder is convolutions, between whose layers there are no tokens"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a FastVLM checkpoint; see `Description`.

    Raises:
        ModelError: If timm is missing.
        PlanError: For tiles, a clip, another encoder or language model, or a view that its encoder
            does not divide.
    """
    check_timm("fast_vlm")
    check_one_view(recipe, "fast_vlm")
    vision = config.vision_config
    if vision.architecture != TOWER:
        raise PlanError(f"vision tower '{vision.architecture}' is not supported, expected {TOWER}")
    (side,) = sides(processor.get("crop_size", SIDE))
    check_view(processor, side, crops=True)
    if side % STRIDE:
        raise PlanError(
            f"the image processor's crop_size is {side}, expected a multiple of {STRIDE} pixels;"
            f" set {SIDE} in preprocessor_config.json"
        )
    image = square_image(side, processor, 3, 0.0, 1.0, fit(processor, crops=True))
    grid, decoder = side // STRIDE, decoder_spec(config.text_config)
    items = (LayoutItem("visual", start=0, stop=grid * grid),)
    return Description(
        image=image,
        view_tokens=grid * grid,
        shape=VisualShape(((grid, grid),), decoder.width),
        encoder=whole_spec(grid * grid, vision.hidden_size, PLAIN),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=processor.get("image_token", "<image>"),
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, spec = model.model, description.encoder
    tower = TimmTower(core.vision_tower.timm_model)
    return ModelParts(
        encoder=EncoderParts(spec, tower, (), core.multi_modal_projector, nn.Identity()),
        pack=nn.Identity(),
        decoder=decoder_parts(core.language_model, description.decoder),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )
