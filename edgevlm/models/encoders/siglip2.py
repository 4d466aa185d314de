"""SigLIP 2 NaFlex (arXiv 2502.14786, section 2.4.2): packed patches, on one square grid.

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
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.embedders import AttentionPooling, SquarePatches
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.parts import EmbedderParts, EncoderParts
from edgevlm.models.family import EmbedderDescription
from edgevlm.models.shared.embedders import (
    check_sizes,
    last_token_text,
    square_image,
    text_spec,
)
from edgevlm.models.shared.towers import encoder_spec
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "encoder", "AutoModel"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> EmbedderDescription:
    """Numbers of a SigLIP 2 NaFlex checkpoint; see `EmbedderDescription`.

    Raises:
        PlanError: If the image encoder has no head, or the patches make no square.
    """
    vision, text = config.vision_config, config.text_config
    if not vision.vision_use_head:
        raise PlanError("the image encoder has no head, so it gives no embedding")
    patches, size = processor.get("max_num_patches", 256), vision.patch_size
    if processor.get("patch_size", size) != size:
        raise PlanError(
            f"the image processor cuts patches of {processor['patch_size']} pixels, and the encoder"
            f" reads {size}; set patch_size {size} in preprocessor_config.json"
        )
    side = isqrt(patches)
    if side * side != patches or vision.num_channels != 3:
        raise PlanError(
            f"max_num_patches {patches} with {vision.num_channels} colours: a static graph has one"
            " grid, and only a square one of RGB is supported"
        )
    return EmbedderDescription(
        image=square_image(side * size, processor, 2, 0.5, 0.5),
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
        table.detach().reshape(size, size, -1), _grid(spec.patches), spec.patches
    )[0]
    encoder = EncoderParts(
        spec=spec,
        embedding=SquarePatches(embeddings.patch_embedding, positions, embeddings.patch_size),
        layers=tuple(EncoderLayer(layer) for layer in tower.encoder.layers),
        connector=AttentionPooling(tower.post_layernorm, tower.head),
        fold=nn.Identity(),
    )
    return EmbedderParts(encoder, last_token_text(model.text_model))


def reference_image(model: Any, pixel_values: Tensor, description: EmbedderDescription) -> Tensor:
    """The model's own embeddings of views f32 [P, 3, h_px, w_px]: [P, E]."""
    count, size = len(pixel_values), model.config.vision_config.patch_size
    side = isqrt(description.encoder.patches)
    cut = pixel_values.reshape(count, 3, side, size, side, size).permute(0, 2, 4, 3, 5, 1)
    patches = cut.reshape(count, side * side, -1)
    mask = torch.ones(count, side * side, dtype=torch.int64)
    grids = _grid(side * side).expand(count, 2)
    return model.get_image_features(patches, mask, grids).pooler_output


def reference_text(model: Any, ids: Tensor) -> Tensor:
    """The model's own embeddings of texts [n, S]: [n, E]."""
    return model.get_text_features(ids).pooler_output


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor, or None for another grid."""
    inputs, size = processor(picture, return_tensors="np"), processor.patch_size
    rows, columns = (int(n) for n in inputs["spatial_shapes"][0])
    if (rows * size, columns * size) != (image.height, image.width):
        return None
    patches = inputs["pixel_values"][0].reshape(rows, columns, size, size, 3)
    return patches.transpose(4, 0, 2, 1, 3).reshape(1, 3, image.height, image.width)


def _grid(patches: int) -> Tensor:
    """The square grid of so many patches [1, 2]."""
    return torch.tensor([[isqrt(patches)] * 2])
