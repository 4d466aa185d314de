"""What a family file gives to the generic code: numbers before weights, then pieces with weights.

A family file is named by transformers' `model_type` and has four functions:

    describe(config, processor, recipe) -> Description      no weights, no graph
    pieces(model, description) -> ModelParts                 the model as a list of static pieces
    reference_features(model, pixel_values, description)     the model's own forward, for `verify`
    processor_views(processor, picture, image)               its own preprocessing, for `verify`
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from edgevlm.bundle.plan import ImageSpec, LayoutItem
from edgevlm.graphs.visual_shape import VisualShape

TABLE_ROW = "table_row"


@dataclass(frozen=True)
class Description:
    """A family's numbers for one recipe.

    Attributes:
        image: Preprocessing.
        view_tokens: Tokens that `encode` gives for one view: N.
        shape: Token grids in the order in which a method sees them (after `ModelParts.pack`).
        full_image: Sequence of one image or clip when all tokens are kept, text and parts; a part
            of kind `table_row` stands for one of the extra rows of the embedding table.
        reduced_image: The same when tokens are removed.
        placeholder: Text that the chat template writes for an image or clip.
        content_type: `image` or `video`, as the chat template calls it.
        chat_template: Template that replaces the checkpoint's, or None.
    """

    image: ImageSpec
    view_tokens: int
    shape: VisualShape
    full_image: tuple[str | LayoutItem, ...]
    reduced_image: tuple[str | LayoutItem, ...]
    placeholder: str
    content_type: str = "image"
    chat_template: str | None = None


@dataclass(frozen=True)
class ModelParts:
    """The model as ordered static modules; nothing here copies a weight.

    Attributes:
        vision: [1, 3, h_px, w_px] through all of them gives the features [1, N, C] of one view.
        pack: features of all views [1, P*N, C] -> the same tokens in the order of `shape`.
        decoder: The decoder layers.
        norm: The norm after them.
        table: Matrices whose rows make the embedding table, in order.
        head: Output matrix [V, C]; the same tensor as `table[0]` where the two are tied.
        language_model: The model's own text decoder, for `verify`.
        class_token: The encoder's first token stands for the whole view (CLIP).
        pruning: Numbers of a method of site `decoder` (`_pruning.Pruning`), or None.
        fold: Values of patches [1, patches, E] -> of tokens [1, N, E], as the connector folds them.
    """

    vision: tuple[nn.Module, ...]
    pack: nn.Module
    decoder: tuple[nn.Module, ...]
    norm: nn.Module
    table: tuple[Tensor, ...]
    head: Tensor
    language_model: nn.Module
    class_token: bool = False
    fold: nn.Module = field(default_factory=nn.Identity)
    pruning: Any = None


def three(values: Any) -> tuple[float, float, float]:
    """Mean or std of a processor config as three floats."""
    r, g, b = values if isinstance(values, list | tuple) else [values] * 3
    return float(r), float(g), float(b)


RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
