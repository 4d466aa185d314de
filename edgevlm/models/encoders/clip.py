"""CLIP (arXiv 2103.00020): an image encoder and a text encoder, compared by a softmax.

The class token is an image's embedding, the first end token a text's, each normed and projected;
a token of a text sees those before it. A picture is resized until its shorter side fits, and its
middle is the view, as the published processor does it.

Limits: a text has as many tokens as the table of positions; a longer one is cut before its end
token. Checkpoints of before 2023 name end token 2 in their config and read the token of the highest
number, which is the end token of their tokenizer.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.graphs.embedders import CausalLayer, ClassHead, EndHead, TextPositions
from edgevlm.graphs.layers import ClassPatchEmbedding, EncoderLayer
from edgevlm.graphs.parts import EmbedderParts, EncoderParts, TextEncoderParts
from edgevlm.models.family import EmbedderDescription
from edgevlm.models.shared.embedders import (
    patches_a_side,
    pooled_view,
    square_image,
    text_spec,
)
from edgevlm.models.shared.preprocessing import check_view, fit
from edgevlm.models.shared.towers import encoder_spec
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "encoder", "AutoModel"
# What CLIP was trained with, and the processor's values where a checkpoint names none.
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> EmbedderDescription:
    """Numbers of a CLIP checkpoint; see `EmbedderDescription`.

    Raises:
        PlanError: If there is no whole grid of square patches, or the processor makes other views.
    """
    vision = config.vision_config
    side = patches_a_side(vision)
    check_view(processor, vision.image_size, crops=True)
    shape = fit(processor, crops=True)
    return EmbedderDescription(
        image=square_image(vision.image_size, processor, 3, MEAN, STD, shape),
        encoder=encoder_spec(vision, vision.num_hidden_layers, side * side, class_token=True),
        size=config.projection_dim,
        text=text_spec(config.text_config, reads_end=True),
        scores="softmax",
        scale="logit_scale",
    )


def parts(model: Any, description: EmbedderDescription) -> EmbedderParts:
    """Static modules over the weights of `model`; see `EmbedderParts`."""
    tower, text = model.vision_model, model.text_model
    encoder = EncoderParts(
        spec=description.encoder,
        embedding=ClassPatchEmbedding(tower.embeddings, tower.pre_layrnorm),
        layers=tuple(EncoderLayer(layer) for layer in tower.encoder.layers),
        connector=ClassHead(tower.post_layernorm, model.visual_projection),
        fold=nn.Identity(),
    )
    tokens = text.embeddings.position_embedding.num_embeddings
    words = TextEncoderParts(
        positions=TextPositions(text.embeddings.position_embedding),
        layers=tuple(CausalLayer(layer, tokens) for layer in text.encoder.layers),
        head=EndHead(text.final_layer_norm, model.text_projection),
        table=text.embeddings.token_embedding.weight,
    )
    return EmbedderParts(encoder, words)


def reference_image(model: Any, pixel_values: Tensor, description: EmbedderDescription) -> Tensor:
    """The model's own embeddings of views f32 [P, 3, h_px, w_px]: [P, E]."""
    return model.get_image_features(pixel_values).pooler_output


def reference_text(model: Any, ids: Tensor) -> Tensor:
    """The model's own embeddings of texts [n, S]: [n, E]."""
    return model.get_text_features(ids).pooler_output


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor."""
    return pooled_view(processor, picture)
