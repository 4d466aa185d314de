"""CLIP's image encoder alone (arXiv 2103.00020), with its projection: embeddings of images.

What transformers saves of `CLIPVisionModelWithProjection`. Its embedding is that of the whole
model; there is nothing to compare it with but other images.

Limits: those of family `clip`. `CLIPVisionModel` has no projection, and so no embedding.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.embedders import EmbedderParts
from edgevlm.models.family import EmbedderDescription
from edgevlm.models.shared.embedders import (
    check_norms,
    class_token_image,
    patches_a_side,
    pooled_view,
    square_image,
)
from edgevlm.models.shared.preprocessing import check_view, fit
from edgevlm.models.shared.towers import CLIP_MEAN, CLIP_STD, encoder_spec
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS, WORDS = "encoder", "CLIPVisionModelWithProjection", False


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> EmbedderDescription:
    """Numbers of the encoder; see `EmbedderDescription`.

    Raises:
        PlanError: If it has no projection, no whole grid of square patches, or its processor makes
            other views.
    """
    if (config.architectures or [AUTO_CLASS]) != [AUTO_CLASS]:
        raise PlanError(
            f"{config.architectures[0]} has no projection, so it gives no embedding; save the model"
            f" as {AUTO_CLASS}"
        )
    side = patches_a_side(config)
    check_norms(config)
    check_view(processor, config.image_size, crops=True)
    shape = fit(processor, crops=True)
    return EmbedderDescription(
        image=square_image(
            config.image_size, processor, 3, CLIP_MEAN, CLIP_STD, shape, recipe.frames
        ),
        encoder=encoder_spec(config, config.num_hidden_layers, side * side, class_token=True),
        size=config.projection_dim,
        text=None,
        scores="softmax",
    )


def parts(model: Any, description: EmbedderDescription) -> EmbedderParts:
    """Static modules over the weights of `model`; see `EmbedderParts`."""
    encoder = class_token_image(description.encoder, model.vision_model, model.visual_projection)
    return EmbedderParts(encoder, None)


def reference_image(model: Any, pixel_values: Tensor, description: EmbedderDescription) -> Tensor:
    """The model's own embeddings of views f32 [P, 3, h_px, w_px]: [P, E]."""
    return model(pixel_values).image_embeds


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor."""
    return pooled_view(processor, picture)
