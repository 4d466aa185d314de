"""The architecture of Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299).

A SigLIP encoder, pixel shuffle and projection, and a Llama decoder.

One image is one view, or R x C tiles followed by the global view, with the markers of the model's
own processor between them. Frames of a clip are views with their times in front. Differences from
the processor: the grid is fixed by the recipe instead of following the picture's shape, and the
picture is resized once instead of twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import EncoderLayer, PatchEmbedding
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.folds import MeanFold
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_resized
from edgevlm.models.shared.tiles.marked import marked_tiles, view_item
from edgevlm.models.shared.towers import encoder_spec
from edgevlm.models.shared.views import image_of
from edgevlm.recipe import Recipe

IMAGE = "<image>"
# Tokens of the sequence by the names under which a tokenizer may have others.
MARKS = {"image": IMAGE, "fake_image": "<fake_token_around_image>", "global_image": "<global-img>"}
# The tokenizers have <row_1_col_1> to <row_6_col_6>.
MARKERS = 6

# The processor replaces the checkpoint's template by this format when a clip is asked about.
VIDEO_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}: {% for part in m.content %}"
    "{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class Marks:
    """What stands for an image in the template, around each view, and before the global one."""

    image: str
    fake: str
    overview: str


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a SmolVLM or Idefics3 checkpoint; see `Description`.

    Raises:
        PlanError: If the vision grid does not divide by the pixel shuffle, or the tile grid has
            more rows or columns than there are markers, or the decoder has no static form.
    """
    vision, scale = config.vision_config, config.scale_factor
    check_resized(processor)
    size = _view_pixels(vision, processor)
    patches = size // vision.patch_size
    marks = Marks(*(processor.get(f"{name}_token", text) for name, text in MARKS.items()))
    if patches % scale:
        raise PlanError(f"{patches} patches a side do not divide by the scale factor {scale}")
    side = patches // scale
    rows, columns = recipe.tiles
    if max(rows, columns) > MARKERS:
        most = f"{MARKERS}x{MARKERS}"
        raise PlanError(f"tiles {rows}x{columns} is more than this model's {most} markers")
    image, n = image_of(processor, recipe, (size, size), "last", 0.5, 0.5, 1), side * side
    clip = recipe.frames > 1
    items = tuple(_clip(recipe.frames, n, marks) if clip else _image(image, n, marks))
    decoder = decoder_spec(config.text_config)
    return Description(
        image=image,
        view_tokens=n,
        shape=VisualShape(((side, side),) * image.views, decoder.width, *image.tiling),
        encoder=encoder_spec(vision, vision.num_hidden_layers, patches**2),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=marks.image,
        chat_template=VIDEO_TEMPLATE.replace(IMAGE, marks.image) if clip else None,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core = model.model
    tower, embeddings = core.vision_model, core.vision_model.embeddings
    return ModelParts(
        encoder=EncoderParts(
            spec=description.encoder,
            embedding=PatchEmbedding(
                embeddings.patch_embedding, _positions(embeddings, description.image.height)
            ),
            layers=tuple(EncoderLayer(layer) for layer in tower.encoder.layers),
            connector=Connector(tower.post_layernorm, core.connector),
            fold=MeanFold(model.config.scale_factor),
        ),
        pack=nn.Identity(),
        decoder=decoder_parts(core.text_model, description.decoder),
        table=(core.text_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [P, 3, h_px, w_px] -> [1, P*N, C]."""
    features = model.model.get_image_features(pixel_values[None], return_dict=True).pooler_output
    return features[0].reshape(1, -1, features[0].shape[-1])


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """Options of the model's own processor for this grid: the picture's shape does the rest."""
    options: dict[str, Any] = {"do_image_splitting": image.rows * image.columns > 1}
    if options["do_image_splitting"]:
        edge = max(image.rows * image.height, image.columns * image.width)
        options["size"] = {"longest_edge": edge}
    return options


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The views f32 [P, 3, h_px, w_px] of the model's own processor, or None for another grid."""
    options = processor_options(image)
    inputs = processor(picture, return_row_col_info=True, return_tensors="np", **options)
    grid = (inputs["rows"][0][0], inputs["cols"][0][0])
    wanted = (image.rows, image.columns) if options["do_image_splitting"] else (0, 0)
    return inputs["pixel_values"][0] if grid == wanted else None


class Connector(nn.Module):
    """Norm, pixel shuffle and projection: [1, patches, D] -> [1, N, C]."""

    def __init__(self, norm: nn.Module, connector: nn.Module) -> None:
        super().__init__()
        self.norm, self.connector = norm, connector

    def forward(self, x: Tensor) -> Tensor:
        return self.connector(self.norm(x))


def _view_pixels(vision: Any, processor: dict[str, Any]) -> int:
    """Pixels of a side of a view: what the processor cuts, which the encoder takes of any size.

    Raises:
        PlanError: If it is no number of pixels with a patch in it.
    """
    largest = processor.get("max_image_size") or vision.image_size
    size = largest.get("longest_edge") if isinstance(largest, dict) else largest
    if not isinstance(size, int) or not vision.patch_size <= size <= 2**16:
        raise PlanError(
            f"the image processor's max_image_size is {largest}, expected longest_edge of at least"
            f" a patch, {vision.patch_size} pixels"
        )
    return size


def _positions(embeddings: Any, pixels: int) -> nn.Embedding:
    """Position embeddings of the patches of a square view in raster order: [N, D].

    The original looks each patch up by its place as a fraction of the view, in float32: with some
    numbers of patches (25, 40) a row falls into the one before, and a smaller view takes every
    other row. Its own module is asked, on a table whose row i is the number i.
    """
    table: nn.Embedding = embeddings.position_embedding
    with torch.device("cpu"), torch.no_grad():
        asked = type(embeddings)(_one_channel(embeddings))
        asked.patch_embedding.weight.zero_()
        asked.patch_embedding.bias.zero_()
        rows = torch.arange(len(table.weight), dtype=torch.float32)
        asked.position_embedding.weight.copy_(rows[:, None])
        side = pixels // embeddings.patch_size
        mask = torch.ones(1, side, side, dtype=torch.bool)
        ids = asked(torch.zeros(1, 3, pixels, pixels), mask).flatten().long()
    if torch.equal(ids, torch.arange(len(table.weight))):
        return table
    chosen = table.weight.detach()[ids.to(table.weight.device)]
    positions = nn.Embedding(chosen.shape[0], chosen.shape[1], device="meta")
    positions.weight = nn.Parameter(chosen, requires_grad=False)
    return positions


def _one_channel(embeddings: Any) -> Any:
    """A config of the same view and patches, one number a patch."""
    return SimpleNamespace(
        hidden_size=1,
        num_channels=3,
        image_size=embeddings.image_size,
        patch_size=embeddings.patch_size,
    )


def _image(image: ImageSpec, tokens: int, marks: Marks) -> list[str | LayoutItem]:
    overview = view_item(image.views - 1, tokens)
    if image.views == 1:
        return [marks.fake + marks.overview, overview, marks.fake]
    marker = f"{marks.fake}<row_{{row}}_col_{{column}}>"
    items = marked_tiles(image, tokens, marker, "\n")
    return [*items, f"\n{marks.fake}{marks.overview}", overview, marks.fake]


def _clip(frames: int, tokens: int, marks: Marks) -> list[str | LayoutItem]:
    # Imported here: the word for a number is needed for clips alone.
    from num2words import num2words

    count = num2words(frames)
    items: list[str | LayoutItem] = [
        LayoutItem(
            "duration",
            prefix=f"You are provided the following series of {count} frames from a ",
            suffix=" [H:MM:SS] video.\n",
        )
    ]
    for index in range(frames):
        time = LayoutItem("timestamp", start=index, prefix="\nFrame from ", suffix=":")
        items += [time, marks.fake + marks.overview, view_item(index, tokens), marks.fake]
    return [*items, "\n\n"]
