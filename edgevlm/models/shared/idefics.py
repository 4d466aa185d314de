"""The architecture of Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299).

A SigLIP encoder, pixel shuffle and projection, and a Llama decoder.

One image is one view, or R x C tiles followed by the global view, with the markers of the model's
own processor between them. Frames of a clip are views with their times in front. Differences from
the processor: the grid is fixed by the recipe instead of following the picture's shape, and the
picture is resized once instead of twice.
"""

from __future__ import annotations

import math
from typing import Any

from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import EncoderLayer, PatchEmbedding
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import RESAMPLE, Description, three
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.towers import encoder_spec
from edgevlm.recipe import Recipe

FAKE, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"
# The tokenizers have <row_1_col_1> to <row_6_col_6>.
MARKERS = 6

# The processor replaces the checkpoint's template by this format when a clip is asked about.
VIDEO_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}: {% for part in m.content %}"
    "{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a SmolVLM or Idefics3 checkpoint; see `Description`.

    Raises:
        PlanError: If the vision grid does not divide by the pixel shuffle, or the tile grid has
            more rows or columns than there are markers, or the decoder has no static form.
    """
    vision, scale = config.vision_config, config.scale_factor
    patches = vision.image_size // vision.patch_size
    if patches % scale:
        raise PlanError(f"{patches} patches a side do not divide by the scale factor {scale}")
    side = patches // scale
    rows, columns = recipe.tiles
    if max(rows, columns) > MARKERS:
        most = f"{MARKERS}x{MARKERS}"
        raise PlanError(f"tiles {rows}x{columns} is more than this model's {most} markers")
    image = ImageSpec(
        height=vision.image_size,
        width=vision.image_size,
        rows=rows,
        columns=columns,
        global_view="last",
        frames=recipe.frames,
        resample=RESAMPLE[processor.get("resample", 1)],
        mean=three(processor.get("image_mean", 0.5)),
        std=three(processor.get("image_std", 0.5)),
    )
    n = side * side
    views = [LayoutItem("visual", start=i * n, stop=(i + 1) * n) for i in range(image.views)]
    items = tuple(_clip(views) if recipe.frames > 1 else _image(views, rows, columns))
    decoder = decoder_spec(config.text_config)
    return Description(
        image=image,
        view_tokens=n,
        shape=VisualShape(((side, side),) * image.views, decoder.width, *image.tiling),
        encoder=encoder_spec(vision, vision.num_hidden_layers, patches**2),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=IMAGE,
        chat_template=VIDEO_TEMPLATE if recipe.frames > 1 else None,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core = model.model
    tower, embeddings = core.vision_model, core.vision_model.embeddings
    return ModelParts(
        encoder=EncoderParts(
            spec=description.encoder,
            embedding=PatchEmbedding(embeddings.patch_embedding, embeddings.position_embedding),
            layers=tuple(EncoderLayer(layer) for layer in tower.encoder.layers),
            connector=Connector(tower.post_layernorm, core.connector),
            fold=Fold(model.config.scale_factor),
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


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The views f32 [P, 3, h_px, w_px] of the model's own processor, or None for another grid."""
    tiles = image.rows * image.columns
    options: dict[str, Any] = {}
    if tiles > 1:  # by the longest edge; the shape of the picture does the rest
        edge = max(image.rows * image.height, image.columns * image.width)
        options = {"size": {"longest_edge": edge}}
    inputs = processor(
        picture,
        do_image_splitting=tiles > 1,
        return_row_col_info=True,
        return_tensors="np",
        **options,
    )
    grid = (inputs["rows"][0][0], inputs["cols"][0][0])
    wanted = (image.rows, image.columns) if tiles > 1 else (0, 0)
    return inputs["pixel_values"][0] if grid == wanted else None


class Connector(nn.Module):
    """Norm, pixel shuffle and projection: [1, patches, D] -> [1, N, C]."""

    def __init__(self, norm: nn.Module, connector: nn.Module) -> None:
        super().__init__()
        self.norm, self.connector = norm, connector

    def forward(self, x: Tensor) -> Tensor:
        return self.connector(self.norm(x))


class Fold(nn.Module):
    """Values of patches to values of tokens, as the pixel shuffle groups them: their mean.

    [1, patches, E] -> [1, patches / scale^2, E].
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        n = side // self.scale
        patches = x.reshape(n, self.scale, n, self.scale, -1)
        return patches.mean((1, 3)).reshape(1, n * n, -1)


def _image(views: list[LayoutItem], rows: int, columns: int) -> list[str | LayoutItem]:
    if len(views) == 1:
        return [FAKE + GLOBAL, views[0], FAKE]
    items: list[str | LayoutItem] = []
    for row in range(rows):
        for column in range(columns):
            items += [f"{FAKE}<row_{row + 1}_col_{column + 1}>", views[row * columns + column]]
        items.append("\n")
    return [*items, f"\n{FAKE}{GLOBAL}", views[-1], FAKE]


def _clip(views: list[LayoutItem]) -> list[str | LayoutItem]:
    # Imported here: the word for a number is needed for clips alone.
    from num2words import num2words

    count = num2words(len(views))
    items: list[str | LayoutItem] = [
        LayoutItem(
            "duration",
            prefix=f"You are provided the following series of {count} frames from a ",
            suffix=" [H:MM:SS] video.\n",
        )
    ]
    for index, view in enumerate(views):
        time = LayoutItem("timestamp", start=index, prefix="\nFrame from ", suffix=":")
        items += [time, FAKE + GLOBAL, view, FAKE]
    return [*items, "\n\n"]
