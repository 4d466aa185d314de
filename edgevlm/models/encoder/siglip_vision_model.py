"""SigLIP's image encoder alone (arXiv 2303.15343): embeddings of images, none of texts.

What transformers saves of `SiglipVisionModel`. Its embedding is that of the whole model; there is
nothing to compare it with but other images.

Limits: those of family `siglip`.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor

from edgevlm.bundle.host import ImageSpec
from edgevlm.graphs.embedders import EmbedderParts
from edgevlm.graphs.layers import PatchEmbedding
from edgevlm.models.family import EmbedderDescription
from edgevlm.models.shared.embedders import (
    check_head,
    check_norms,
    patches_a_side,
    pooled_image,
    pooled_view,
    square_image,
)
from edgevlm.models.shared.preprocessing import check_view, fit
from edgevlm.models.shared.towers import encoder_spec
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS, WORDS = "encoder", "AutoModel", False


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> EmbedderDescription:
    """Numbers of the encoder; see `EmbedderDescription`.

    Raises:
        PlanError: If it has no head, no whole grid of square patches, or its processor makes other
            views.
    """
    check_head(config)
    side = patches_a_side(config)
    check_norms(config)
    check_view(processor, config.image_size)
    shape = fit(processor, crops=False)
    return EmbedderDescription(
        image=square_image(config.image_size, processor, 3, 0.5, 0.5, shape, recipe.frames),
        encoder=encoder_spec(config, config.num_hidden_layers, side * side),
        size=config.hidden_size,
        text=None,
        scores="sigmoid",
    )


def parts(model: Any, description: EmbedderDescription) -> EmbedderParts:
    """Static modules over the weights of `model`; see `EmbedderParts`."""
    embeddings = model.embeddings
    embedding = PatchEmbedding(embeddings.patch_embedding, embeddings.position_embedding)
    return EmbedderParts(pooled_image(description.encoder, model, embedding), None)


def reference_image(model: Any, pixel_values: Tensor, description: EmbedderDescription) -> Tensor:
    """The model's own embeddings of views f32 [P, 3, h_px, w_px]: [P, E]."""
    return model(pixel_values).pooler_output


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor."""
    return pooled_view(processor, picture)
