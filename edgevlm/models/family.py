"""What a family file gives to the generic code: numbers before weights, then modules with weights.

A family file is `edgevlm/models/<kind>/<model_type>.py`, named as transformers names the model.
Its first docstring line is its summary. It has two constants and functions:

    KIND, AUTO_CLASS                                        its kind of bundle; what builds the
                                                            model, a class of transformers
    describe(config, processor, recipe) -> Description      numbers alone: no weights, no graph
    parts(model, description) -> ModelParts                 the model as static modules
    processor_views(processor, picture, image)              its own preprocessing, for `verify`
    processor_options(image)                                kind `vlm`: options under which its own
                                                            processor cuts a picture as we do

    processor_stand_in(numbers)                             where that needs a library beyond ours:
                                                            what takes its image processor's place
                                                            in the text, and makes no pixels

and what `verify` compares with, the model's own encoders:

    reference_features(model, pixel_values, description)    kind `vlm`
    reference_levels(model, pixel_values, description)      kind `vlm`, where the decoder takes
                                                            features of further levels: [L, N, C]
    reference_logits(model, pixel_values, ids, description) kind `vlm`, where it is not sure what
                                                            the model does with features: scores
                                                            [S, V] of its own forward
    reference_image(model, pixel_values, description)       kind `encoder`: embeddings [P, E]
    reference_text(model, ids)                              the same of ids [n, S]
    reference_logits(model, pixel_values, ids, description) their likeness [P, n]

A family of images or clips alone has `WORDS = False`, no tokenizer and not the last two. One of
clips takes views [P, 3 * frames, h_px, w_px], and where its checkpoints are of several classes of
transformers' it has `auto_class(config)`, the name of the one that builds the model.

What is a number and known before weights belongs to the description; what is a module belongs to
the parts. Only a family file reads a config. `parts` gives named modules instead of a list for each
stage, because methods work between them: they merge tokens after a layer of the encoder, read the
attention of its last one, and remove tokens before a layer of the decoder. `graphs.blocks` makes
stages of them. A family imports no other family; what several share is in `edgevlm/models/shared`,
and the layers of all are in `edgevlm/graphs/layers.py`.

A family that leaves weights of its model out also has `left_out(config, all_layers)`, the prefixes
of their names: a checkpoint without them is one, too. Where a method reads the last layer of the
encoder, `all_layers` is true, and layers after the selected one are not left out.

A family with matrices that have numbers of all layers of the language model side by side also has
`side_by_side(config)`, for a trial of the first layers: for the end of each name the axis, and the
size along it by the config.

`notes(config, description)`, where there is one, gives lines that a reader of a plan must know, and
`shown(model_type)` the family's name in a plan and a manifest. A type of transformers' that has no
file here takes the generic path: `edgevlm/models/generic/family.py` has the same names as a family.

`Description` and `ModelParts` are those of the kind `vlm`; of the kind `encoder` they are
`EmbedderDescription` and `EmbedderParts`. A kind without images has no `processor_views`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.graphs.parts import DecoderSpec, EncoderSpec
from edgevlm.graphs.visual_shape import VisualShape

TABLE_ROW = "table_row"
# Filters by their number in PIL, which is how processors store them.
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True)
class Description:
    """A family's numbers for one recipe.

    Attributes:
        image: Preprocessing.
        view_tokens: Tokens that `encode` gives for one view: N.
        shape: Token grids in the order in which a method sees them (after `ModelParts.pack`).
        encoder: Numbers of the vision encoder.
        decoder: Numbers of the language decoder.
        full_image: Sequence of one image or clip when all tokens are kept, text and items; an item
            of kind `table_row` stands for one of the extra rows of the embedding table, one of kind
            `text` for its `prefix`, a token of which the item says the place.
        reduced_image: The same when tokens are removed.
        placeholder: Text that the chat template writes for an image or clip.
        visual_token: Token that the processor writes for a visual token, where it is not the
            placeholder; empty where it is.
        content_type: `image` or `video`, as the chat template calls it.
        chat_template: Template that replaces the checkpoint's, or None.
        chats: Whether there are first turns without a picture, and further turns.
        processor_tokens: Tokens that the checkpoint's own processor writes for an image, where they
            are not as many as in `full_image`; 0 where they are.
    """

    image: ImageSpec
    view_tokens: int
    shape: VisualShape
    encoder: EncoderSpec
    decoder: DecoderSpec
    full_image: tuple[str | LayoutItem, ...]
    reduced_image: tuple[str | LayoutItem, ...]
    placeholder: str
    content_type: str = "image"
    chat_template: str | None = None
    chats: bool = True
    processor_tokens: int = 0
    visual_token: str = ""


@dataclass(frozen=True)
class TextSpec:
    """Numbers of a text encoder.

    Attributes:
        tokens: S, tokens of a text.
        layers: Its layers.
        width: Channels of a token: C.
        vocabulary: Rows of its table.
        pad_id: What fills up a text, where the checkpoint's tokenizer names nothing.
        reads_end: Whether the embedding is that of the first end token, else of the last token.
        end_id: That end token; None for the token of the highest number.
        lower_case: Whether the checkpoint's tokenizer makes a text lower case first, beside what
            tokenizer.json says.
    """

    tokens: int
    layers: int
    width: int
    vocabulary: int
    pad_id: int
    reads_end: bool
    end_id: int | None = None
    lower_case: bool = False


@dataclass(frozen=True)
class EmbedderDescription:
    """A family's numbers of an image encoder with one embedding, for one recipe.

    Attributes:
        image: Preprocessing.
        encoder: Numbers of the image encoder.
        size: E, numbers of an embedding.
        text: The text encoder; None where the checkpoint has none.
        scores: What makes shares of likenesses: `softmax` or `sigmoid`.
        scale: Weight that is the logarithm of the factor of a likeness; empty for a factor of 1.
        bias: Weight that is added to it; empty for none.
        classes: Names of the classes whose logits it gives instead of an embedding; empty for none.
    """

    image: ImageSpec
    encoder: EncoderSpec
    size: int
    text: TextSpec | None
    scores: str
    scale: str = ""
    bias: str = ""
    classes: tuple[str, ...] = ()


def three(values: Any) -> tuple[float, float, float]:
    """Mean or std of a processor config as three floats."""
    r, g, b = values if isinstance(values, list | tuple) else [values] * 3
    return float(r), float(g), float(b)


def token_ids(value: Any) -> tuple[int, ...]:
    """An `eos_token_id` (a number, several, or None) as ids in ascending order.

    Raises:
        TypeError: If it is something else.
    """
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise TypeError(f"eos_token_id must be a number, got {value!r}")
    return tuple(sorted(set(ids)))
