"""PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555): SigLIP, one linear, Gemma.

All tokens of a prompt, visual ones and words, see each other; the answer is causal. Positions begin
at 1. A prompt is the picture's tokens, <bos>, the question and a line break: there is no chat, so
that a conversation is one question about pictures.

Source: transformers' `models/paligemma`. Limits: PaliGemma 2 has layers with a window of 4,096
tokens, which a prompt of 896x896 pixels passes with all of its tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from edgevlm.bundle.host import LayoutItem
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
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
# What the processor writes for text and pictures; there is no template of the checkpoint's own.
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{% for part in message.content if part.type == 'image' %}IMAGE{% endfor %}{{ bos_token }}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{{ '\n' }}"
    "{% else %}{{ message.content[0].text }}{% endif %}{% endfor %}"
)


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a PaliGemma checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, or an encoder or decoder that the static form has not.
    """
    vision = config.vision_config
    image, side = one_view(config, processor, recipe, resample=3)
    decoder = replace(decoder_spec(config.text_config, mask="prefix"), first_position=1)
    items = (LayoutItem("visual", start=0, stop=side * side),)
    mark = processor.get("image_token", "<image>")
    return Description(
        image=image,
        view_tokens=side * side,
        shape=VisualShape(((side, side),), decoder.width, *image.tiling),
        encoder=encoder_spec(vision, vision.num_hidden_layers, side * side),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=mark,
        chat_template=TEMPLATE.replace("IMAGE", mark),
        chats=False,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, text = model.model, model.config.text_config
    decoder = decoder_parts(core.language_model, description.decoder)
    return ModelParts(
        encoder=siglip_parts(
            description.encoder,
            core.vision_tower,
            core.multi_modal_projector.linear,
            nn.Identity(),
        ),
        pack=nn.Identity(),
        # The whole model makes the masks.
        decoder=replace(decoder, language_model=core, own_inputs=_own_inputs),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
        logit_softcap=float(getattr(text, "final_logit_softcapping", None) or 0),
    )


def _own_inputs(groups: Tensor) -> dict[str, Tensor]:
    """Which rows are of the answer."""
    return {"token_type_ids": (groups < 0).long()}
