"""Gemma 3 (arXiv 2503.19786): SigLIP, patches averaged to 256 tokens, a matrix, and Gemma 3's text.

The tokens of a picture see each other; in layers with a window they do so inside it. Layers with a
window and layers without have rotary tables of their own.

Source: transformers' `models/gemma3`. Limits: a picture is one view, as is published (the processor
cuts further views where `do_pan_and_scan` says so); no clips.
"""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import Any

from torch import Tensor, nn

from edgevlm.bundle.host import LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import rms_norm
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.folds import MeanFold
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.siglip import (
    left_out,
    one_view,
    processor_options,
    processor_views,
    reference_features,
    siglip_parts,
)
from edgevlm.models.shared.towers import encoder_spec
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
START, END, VISUAL = "<start_of_image>", "<end_of_image>", "<image_soft_token>"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a Gemma 3 checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, patches that do not divide, or an encoder or decoder that the
            static form has not.
    """
    vision = config.vision_config
    if processor.get("do_pan_and_scan"):
        raise PlanError(
            "the image processor has do_pan_and_scan true and cuts a picture by its shape, and a"
            " bundle has one view; set do_pan_and_scan false in preprocessor_config.json"
        )
    image, patches = one_view(config, processor, recipe, resample=2)
    side = isqrt(config.mm_tokens_per_image)
    if side**2 != config.mm_tokens_per_image or patches % side:
        raise PlanError(
            f"{patches}x{patches} patches do not divide into mm_tokens_per_image"
            f" {config.mm_tokens_per_image}"
        )
    decoder = decoder_spec(config.text_config, mask="pictures")
    visual = LayoutItem("visual", start=0, stop=side * side)
    items = (f"\n\n{START}", visual, f"{END}\n\n")
    return Description(
        image=image,
        view_tokens=side * side,
        shape=VisualShape(((side, side),), decoder.width, *image.tiling),
        encoder=encoder_spec(vision, vision.num_hidden_layers, patches**2),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=START,
        visual_token=processor.get("image_token", VISUAL),
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, spec = model.model, description.encoder
    fold = MeanFold(isqrt(spec.patches // description.view_tokens))
    decoder = decoder_parts(core.language_model, description.decoder)
    return ModelParts(
        encoder=siglip_parts(
            spec, core.vision_tower, Projector(core.multi_modal_projector, fold), fold
        ),
        pack=nn.Identity(),
        # The whole model makes the masks.
        decoder=replace(decoder, language_model=core, own_inputs=_own_inputs),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


class Projector(nn.Module):
    """Means of patches, normed, times a matrix [D, C]: [1, patches, D] -> [1, N, C]."""

    def __init__(self, projector: Any, fold: MeanFold) -> None:
        super().__init__()
        self.fold, self.norm = fold, projector.mm_soft_emb_norm
        self.matrix = projector.mm_input_projection_weight

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(self.norm, self.fold(x), 1.0) @ self.matrix


def _own_inputs(groups: Tensor) -> dict[str, Tensor]:
    """Which rows are of a picture."""
    return {"token_type_ids": (groups >= 0).long()}
