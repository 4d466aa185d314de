"""CLIP (arXiv 2103.00020): an image encoder and a text encoder, compared by a softmax.

The class token is an image's embedding, the first end token a text's, each normed and projected;
a token of a text sees those before it. A picture is resized until its shorter side fits, and its
middle is the view, as the published processor does it. A clip of `--frames F` has F views, and the
mean of their embeddings at unit length as its own (CLIP4Clip, arXiv 2104.08860, section 3.3.1).

Limits: a text has as many tokens as the table of positions; a longer one is cut before its end
token. Checkpoints of before 2023 name end token 2 in their config and read the token of the highest
number, which is the end token of their tokenizer.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor

from edgevlm.bundle.host import ImageSpec
from edgevlm.graphs.embedders import (
    CausalLayer,
    EmbedderParts,
    EndHead,
    TextEncoderParts,
    TextPositions,
)
from edgevlm.models.family import EmbedderDescription
from edgevlm.models.shared.embedders import (
    check_norms,
    class_token_image,
    end_token,
    patches_a_side,
    pooled_view,
    square_image,
    text_spec,
)
from edgevlm.models.shared.preprocessing import check_view, fit
from edgevlm.models.shared.towers import CLIP_MEAN, CLIP_STD, encoder_spec
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "encoder", "AutoModel"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> EmbedderDescription:
    """Numbers of a CLIP checkpoint; see `EmbedderDescription`.

    Raises:
        PlanError: If there is no whole grid of square patches, the processor makes other views, or
            a text has no end.
    """
    vision, text = config.vision_config, config.text_config
    side = patches_a_side(vision)
    check_norms(vision, text)
    check_view(processor, vision.image_size, crops=True)
    shape = fit(processor, crops=True)
    return EmbedderDescription(
        image=square_image(
            vision.image_size, processor, 3, CLIP_MEAN, CLIP_STD, shape, recipe.frames
        ),
        encoder=encoder_spec(vision, vision.num_hidden_layers, side * side, class_token=True),
        size=config.projection_dim,
        text=text_spec(text, reads_end=True, end_id=end_token(text)),
        scores="softmax",
        scale="logit_scale",
    )


def parts(model: Any, description: EmbedderDescription) -> EmbedderParts:
    """Static modules over the weights of `model`; see `EmbedderParts`."""
    tower, text = model.vision_model, model.text_model
    encoder = class_token_image(description.encoder, tower, model.visual_projection)
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


def reference_logits(
    model: Any, pixel_values: Tensor, ids: Tensor, description: EmbedderDescription
) -> Tensor:
    """How alike the model's own forward finds views and texts [n, S]: [P, n]."""
    return model(input_ids=ids, pixel_values=pixel_values).logits_per_image


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor."""
    return pooled_view(processor, picture)
