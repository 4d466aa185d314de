"""What image and text encoders of CLIP's kin share: preprocessing, numbers, refusals."""

from __future__ import annotations

from typing import Any

from PIL import Image

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.embedders import LastHead, TextPositions
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.parts import TextEncoderParts
from edgevlm.models.family import RESAMPLE, TextSpec
from edgevlm.models.shared.preprocessing import check_resized, normalization


def square_image(
    side: int, processor: dict[str, Any], resample: int, mean: Any, std: Any, fit: str = "stretch"
) -> ImageSpec:
    """One view of `side` pixels; what the processor does not name is the family's own.

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
        frames=1,
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
    return size // patch


def text_spec(text: Any, reads_end: bool, lower_case: bool = False) -> TextSpec:
    """Numbers of a text encoder, from transformers' text config."""
    return TextSpec(
        tokens=text.max_position_embeddings,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        pad_id=text.pad_token_id or 0,
        reads_end=reads_end,
        lower_case=lower_case,
    )


def check_sizes(image: int, text: int) -> int:
    """The size of both embeddings.

    Raises:
        PlanError: If they differ.
    """
    if image != text:
        raise PlanError(f"embeddings of images have {image} numbers, those of texts {text}")
    return image


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
