"""What image and text encoders of CLIP's kin share: preprocessing, numbers, refusals."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.embedders import (
    AttentionPooling,
    ClassHead,
    ClassPatchEmbedding,
    LastHead,
    TextEncoderParts,
    TextPositions,
)
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.parts import EncoderParts, EncoderSpec
from edgevlm.models.family import RESAMPLE, TextSpec
from edgevlm.models.shared.preprocessing import check_resized, normalization

# The end token in CLIP's configs of before 2023, which is none of their tokenizers: transformers
# then reads the token of the highest number.
OLD_END = 2


def square_image(
    side: int,
    processor: dict[str, Any],
    resample: int,
    mean: Any,
    std: Any,
    fit: str = "stretch",
    frames: int = 1,
) -> ImageSpec:
    """One view of `side` pixels; what the processor does not name is the family's own.

    Of a clip each frame is a view, and its embedding the mean of theirs at unit length (CLIP4Clip,
    arXiv 2104.08860, section 3.3.1).

    Raises:
        PlanError: If the processor keeps a picture's size.
    """
    check_resized(processor)
    mean, std = normalization(processor, mean, std)
    return ImageSpec(
        height=side,
        width=side,
        rows=1,
        columns=1,
        global_view="first",
        frames=frames,
        resample=RESAMPLE[processor.get("resample", resample)],
        mean=mean,
        std=std,
        fit=fit,
    )


def patches_a_side(vision: Any) -> int:
    """Patches along a side of the view.

    Raises:
        PlanError: If the encoder has pixels of other colours, or no whole number of square patches.
    """
    size, patch = vision.image_size, vision.patch_size
    if not isinstance(size, int) or not isinstance(patch, int):
        raise PlanError(f"views of {size} pixels in patches of {patch}: only squares are supported")
    if vision.num_channels != 3:
        raise PlanError(f"views of {vision.num_channels} colours are not supported, only RGB is")
    if patch > size:
        raise PlanError(f"patches of {patch} pixels are larger than the view of {size}")
    return size // patch


def check_norms(*configs: Any) -> None:
    """Refuse a norm that divides by nothing.

    Raises:
        PlanError: Naming the key and its value.
    """
    for config in configs:
        value = config.layer_norm_eps
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise PlanError(
                f"layer_norm_eps of {config.model_type} is {value}, expected a number above 0 and"
                " below 1, such as 1e-5"
            )


def end_token(text: Any) -> int | None:
    """The token at which CLIP reads a text; None for that of the highest number.

    Raises:
        PlanError: If the config names none, or several.
    """
    value = text.eos_token_id
    if type(value) is not int:
        raise PlanError(
            f"text_config.eos_token_id is {value}, expected the one token that ends a text"
        )
    return None if value == OLD_END else value


def text_spec(
    text: Any, reads_end: bool, lower_case: bool = False, end_id: int | None = None
) -> TextSpec:
    """Numbers of a text encoder, from transformers' text config."""
    return TextSpec(
        tokens=text.max_position_embeddings,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        pad_id=text.pad_token_id or 0,
        reads_end=reads_end,
        end_id=end_id,
        lower_case=lower_case,
    )


def check_head(vision: Any) -> None:
    """Refuse a SigLIP image encoder that gives patches alone.

    Raises:
        PlanError: If it has no head.
    """
    if not vision.vision_use_head:
        raise PlanError("the image encoder has no head, so it gives no embedding")


def check_sizes(image: int, text: int) -> int:
    """The size of both embeddings.

    Raises:
        PlanError: If they differ.
    """
    if image != text:
        raise PlanError(f"embeddings of images have {image} numbers, those of texts {text}")
    return image


def class_token_image(spec: EncoderSpec, tower: Any, projection: nn.Module) -> EncoderParts:
    """CLIP's image encoder: the class token, normed and projected, is the embedding."""
    return EncoderParts(
        spec=spec,
        embedding=ClassPatchEmbedding(tower.embeddings, tower.pre_layrnorm),
        layers=tuple(EncoderLayer(layer) for layer in tower.encoder.layers),
        connector=ClassHead(tower.post_layernorm, projection),
        fold=nn.Identity(),
    )


def pooled_image(spec: EncoderSpec, tower: Any, embedding: nn.Module) -> EncoderParts:
    """SigLIP's image encoder: one attending query over all patches gives the embedding."""
    return EncoderParts(
        spec=spec,
        embedding=embedding,
        layers=tuple(EncoderLayer(layer) for layer in tower.encoder.layers),
        connector=AttentionPooling(tower.post_layernorm, tower.head),
        fold=nn.Identity(),
    )


def last_token_text(tower: Any) -> TextEncoderParts:
    """SigLIP's text encoder: every token sees all, and the last one is the embedding."""
    embeddings = tower.embeddings
    return TextEncoderParts(
        positions=TextPositions(embeddings.position_embedding),
        layers=tuple(EncoderLayer(layer) for layer in tower.encoder.layers),
        head=LastHead(tower.final_layer_norm, tower.head),
        table=embeddings.token_embedding.weight,
    )


def pooled_view(processor: Any, picture: Image.Image) -> Any:
    """The view f32 [1, 3, h_px, w_px] of an image processor that gives whole views."""
    return processor(picture, return_tensors="np")["pixel_values"]
