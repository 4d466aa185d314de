"""SigLIP (arXiv 2303.15343) and SigLIP 2 of a fixed resolution (arXiv 2502.14786).

An image encoder whose head is one attending query, and a text encoder whose last token is the
embedding; both are compared by a sigmoid of their scaled and shifted product. Checkpoints of
SigLIP 2 with a resolution in their name (`siglip2-base-patch16-224`) are of this family, says their
config; those of NaFlex are `siglip2`.

Limits: one picture is one view, resized whatever its shape, as the published processor does it. A
text has as many tokens as the table of positions; a longer one is cut.
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
    check_sizes,
    last_token_text,
    patches_a_side,
    pooled_image,
    pooled_view,
    square_image,
    text_spec,
)
from edgevlm.models.shared.preprocessing import check_view, fit
from edgevlm.models.shared.towers import encoder_spec
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "encoder", "AutoModel"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> EmbedderDescription:
    """Numbers of a SigLIP checkpoint; see `EmbedderDescription`.

    Raises:
        PlanError: If the image encoder has no head, or no whole grid of square patches.
    """
    vision, text = config.vision_config, config.text_config
    check_head(vision)
    side = patches_a_side(vision)
    check_norms(vision, text)
    check_view(processor, vision.image_size)
    shape = fit(processor, crops=False)
    return EmbedderDescription(
        image=square_image(vision.image_size, processor, 3, 0.5, 0.5, shape, recipe.frames),
        encoder=encoder_spec(vision, vision.num_hidden_layers, side * side),
        size=check_sizes(vision.hidden_size, text.projection_size),
        text=text_spec(text, reads_end=False),
        scores="sigmoid",
        scale="logit_scale",
        bias="logit_bias",
    )


def parts(model: Any, description: EmbedderDescription) -> EmbedderParts:
    """Static modules over the weights of `model`; see `EmbedderParts`."""
    embeddings = model.vision_model.embeddings
    embedding = PatchEmbedding(embeddings.patch_embedding, embeddings.position_embedding)
    encoder = pooled_image(description.encoder, model.vision_model, embedding)
    return EmbedderParts(encoder, last_token_text(model.text_model))


def reference_image(model: Any, pixel_values: Tensor, description: EmbedderDescription) -> Tensor:
    """The model's own embeddings of views f32 [P, 3, h_px, w_px]: [P, E]."""
    return model.get_image_features(pixel_values).pooler_output


def reference_text(model: Any, ids: Tensor) -> Tensor:
    """The model's own embeddings of texts [n, S]: [n, E]."""
    return model.get_text_features(ids).pooler_output


def reference_logits(
    model: Any, pixel_values: Tensor, ids: Tensor, description: EmbedderDescription
) -> Tensor:
    """How alike the model's own forward finds views and texts [n, S]: [P, n]."""
    return model(input_ids=ids, pixel_values=pixel_values).logits_per_image


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor."""
    return pooled_view(processor, picture)
