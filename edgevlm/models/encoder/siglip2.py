"""SigLIP 2 NaFlex (arXiv 2502.14786, section 2.4.2), on one square grid: pictures are stretched.

The published processor keeps a picture's shape: it resizes it to as many patches as
`max_num_patches` allows, packs them, and the table of positions is interpolated to their grid. A
static graph has one grid. Here it is the square one, which the processor gives to a square picture;
a picture of another shape is stretched to it, as the SigLIP 2 models of a fixed resolution do it,
and its embedding is another one than the processor's grid would give. All else is SigLIP's.

Limits: `max_num_patches` must be a square number.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.embedders import EmbedderParts, GridPatches
from edgevlm.models.family import EmbedderDescription
from edgevlm.models.shared.embedders import (
    check_head,
    check_norms,
    check_sizes,
    last_token_text,
    pooled_image,
    square_image,
    text_spec,
)
from edgevlm.models.shared.encoders.naflex import packed, unpacked
from edgevlm.models.shared.towers import encoder_spec
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "encoder", "AutoModel"
MOST_PATCHES = 2**14  # 128 x 128; the published models have 256


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> EmbedderDescription:
    """Numbers of a SigLIP 2 NaFlex checkpoint; see `EmbedderDescription`.

    Raises:
        PlanError: If the image encoder has no head, or the patches make no square.
    """
    vision, text = config.vision_config, config.text_config
    check_head(vision)
    patches, size = processor.get("max_num_patches", 256), vision.patch_size
    if processor.get("patch_size", size) != size:
        raise PlanError(
            f"the image processor cuts patches of {processor['patch_size']} pixels, and the encoder"
            f" reads {size}; set patch_size {size} in preprocessor_config.json"
        )
    check_norms(vision, text)
    good = type(patches) is int and 1 <= patches <= MOST_PATCHES
    side = isqrt(patches) if good else 0
    if not good or side * side != patches or vision.num_channels != 3:
        raise PlanError(
            f"max_num_patches {patches} with {vision.num_channels} colours: a static graph has one"
            f" grid, and only a square one of RGB is supported, of 1 to {MOST_PATCHES} patches"
        )
    return EmbedderDescription(
        image=square_image(side * size, processor, 2, 0.5, 0.5, frames=recipe.frames),
        encoder=encoder_spec(vision, vision.num_hidden_layers, patches),
        size=check_sizes(vision.hidden_size, text.projection_size),
        text=text_spec(text, reads_end=False, lower_case=True),
        scores="sigmoid",
        scale="logit_scale",
        bias="logit_bias",
    )


def parts(model: Any, description: EmbedderDescription) -> EmbedderParts:
    """Static modules over the weights of `model`; see `EmbedderParts`."""
    tower = model.vision_model
    embeddings, spec = tower.embeddings, description.encoder
    table = embeddings.position_embedding.weight
    size = embeddings.position_embedding_size
    positions = embeddings.resize_positional_embeddings(
        table.detach().reshape(size, size, -1),
        torch.tensor([[isqrt(spec.patches)] * 2]),
        spec.patches,
    )[0]
    embedding = GridPatches(embeddings.patch_embedding, positions, embeddings.patch_size)
    encoder = pooled_image(spec, tower, embedding)
    return EmbedderParts(encoder, last_token_text(model.text_model))


def reference_image(model: Any, pixel_values: Tensor, description: EmbedderDescription) -> Tensor:
    """The model's own embeddings of views f32 [P, 3, h_px, w_px]: [P, E]."""
    views = packed(pixel_values, model.config.vision_config.patch_size)
    return model.get_image_features(**views).pooler_output


def reference_text(model: Any, ids: Tensor) -> Tensor:
    """The model's own embeddings of texts [n, S]: [n, E]."""
    return model.get_text_features(ids).pooler_output


def reference_logits(
    model: Any, pixel_values: Tensor, ids: Tensor, description: EmbedderDescription
) -> Tensor:
    """How alike the model's own forward finds views and texts [n, S]: [P, n]."""
    views = packed(pixel_values, model.config.vision_config.patch_size)
    return model(input_ids=ids, **views).logits_per_image


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor, or None for another grid."""
    inputs = processor(picture, return_tensors="np")
    view = unpacked(inputs["pixel_values"], inputs["spatial_shapes"], processor.patch_size)
    size = (1, 3, image.height, image.width)
    return view if view is not None and view.shape == size else None
