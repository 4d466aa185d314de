"""What the checkpoint's own processors compute, asked before an encoder is exported.

transformers' image processor is shown a square and a wide picture: its views must be those that the
encoder reads. Its tokenizer is loaded, because `verify` compares ids with it; one that gives a mask
of the padding is refused where the model would read the mask, since a bundle has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import ModelError, PlanError
from edgevlm.libraries import first_line
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.family import TextSpec
from edgevlm.models.processor import load_images, missing_library, own_tokenizer
from edgevlm.models.quiet import quiet

# Width and height; a family whose processor keeps a picture's shape has no view of the second.
PICTURES = ((64, 64), (96, 64))
LONGEST = 160  # letters of a library's message


def check_views(checkpoint: Checkpoint, image: ImageSpec) -> None:
    """Refuse a checkpoint whose image processor gives other views than its encoder reads.

    Raises:
        ModelError: If it has no image processor, or one that cannot be loaded or run.
        PlanError: If its views have another shape.
    """
    if not checkpoint.processor(image.subject):
        raise ModelError(
            f"'{checkpoint.model}' says nothing of its pictures: preprocessor_config.json is"
            " missing or empty; take it from the model that the weights were trained from"
        )
    if missing_library(checkpoint):
        return
    expected = (1, 3, image.height, image.width)
    for size in PICTURES:
        views = _views(checkpoint, image, Image.new("RGB", size))
        square = size[0] == size[1]
        if views is None and not square:
            continue
        if views is None or views.shape != expected:
            shape = "another grid" if views is None else f"views of {_pixels(views.shape)}"
            raise PlanError(
                f"of a picture of {size[0]}x{size[1]} pixels the image processor makes {shape}, and"
                f" the encoder reads {_pixels(expected)}; set size, with crop_size and patch_size,"
                f' to {{"height": {image.height}, "width": {image.width}}} in'
                " preprocessor_config.json"
            )


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """transformers' tokenizer of the checkpoint.

    Raises:
        ModelError: If it cannot be loaded.
    """
    try:
        with quiet():
            return own_tokenizer(checkpoint)
    except Exception as cause:  # a damaged file raises anything
        raise ModelError(
            f"'{checkpoint.model}': its own tokenizer cannot be loaded, see tokenizer_config.json:"
            f" {first_line(cause)[:LONGEST]}"
        ) from cause


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens that texts have beside their words.

    Attributes:
        end_id: What a text ends with; None where it ends with no token.
        pad_id: What fills it up: the tokenizer's, or the model's where it names none.
        most: The highest token.
    """

    end_id: int | None
    pad_id: int
    most: int

    def check(self, text: TextSpec) -> None:
        """Refuse tokens beyond the model's table.

        Raises:
            PlanError: With the highest token and the rows.
        """
        if not 0 <= self.pad_id <= max(self.pad_id, self.most) < text.vocabulary:
            raise PlanError(
                f"the tokenizer has tokens up to {self.most} and fills texts up with"
                f" {self.pad_id}, the model's table has {text.vocabulary} rows; take the tokenizer"
                " that it was trained with"
            )


def special_tokens(checkpoint: Checkpoint, text: TextSpec) -> SpecialTokens:
    """The special tokens of a checkpoint's tokenizer.

    Raises:
        ModelError: If the tokenizer cannot be loaded.
    """
    tokenizer = checkpoint.tokenizer()
    tokenizer.no_padding()
    around = tokenizer.encode("").ids
    config = checkpoint.tokenizer_folder.relative_to(checkpoint.folder) / "tokenizer_config.json"
    named = checkpoint.document(str(config)).get("pad_token")
    named = named.get("content") if isinstance(named, dict) else named
    pad = tokenizer.token_to_id(named) if isinstance(named, str) else None
    return SpecialTokens(
        end_id=around[-1] if around else None,
        pad_id=text.pad_id if pad is None else pad,
        most=max(tokenizer.get_vocab().values(), default=0),
    )


def check_tokenizer(checkpoint: Checkpoint, text: TextSpec) -> None:
    """Refuse a tokenizer whose texts the text encoder reads otherwise than a bundle does.

    Raises:
        ModelError: If it cannot be loaded.
        PlanError: If it gives a mask that the model reads. Where the embedding is that of the end
            token, only tokens before it are seen, and the mask hides none of them.
    """
    own = load_tokenizer(checkpoint)
    if "attention_mask" in own.model_input_names and not text.reads_end:
        raise PlanError(
            "the tokenizer gives an attention_mask, and the text encoder was trained to read the"
            ' padding too; set "model_input_names": ["input_ids"] in tokenizer_config.json, as the'
            " published checkpoints have it"
        )


def _views(checkpoint: Checkpoint, image: ImageSpec, picture: Image.Image) -> Any:
    """The own processor's views f32 [1, 3, h_px, w_px]; None for another grid."""
    try:
        with quiet():
            return checkpoint.family.processor_views(load_images(checkpoint), picture, image)
    except Exception as cause:  # values of a wrong type raise anything
        raise ModelError(
            f"'{checkpoint.model}': its own image processor fails, see preprocessor_config.json:"
            f" {first_line(cause)[:LONGEST]}"
        ) from cause


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[-1]}x{shape[-2]} pixels"
