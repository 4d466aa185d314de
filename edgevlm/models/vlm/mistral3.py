"""Mistral 3 (Mistral Small 3.1 on, Ministral 3): the Pixtral encoder and Mistral's language models.

A picture is one view of `--size`, 448x448 pixels unless told, where the original keeps its shape
and chooses a size by it. Its tokens stand in the text row by row: a row ends with [IMG_BREAK], the
last one with [IMG_END]; when tokens are removed the last one alone remains, unless the method keeps
rows.

Sources: Pixtral (arXiv 2410.07073, section 2); transformers' `models/mistral3/modeling_mistral3.py`
and `models/pixtral/modeling_pixtral.py`. Limits: no clips, no tiles; methods that merge inside the
encoder or compare its keys are refused; the context ends where Ministral 3 begins to scale queries
by their position.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.encoders.pixtral import Connector, Patches, PixtralLayer
from edgevlm.models.shared.encoders.qwen import LACKING, UNMERGEABLE, Fold, GridTables, PatchGrid
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_resized
from edgevlm.models.shared.towers import CLIP_MEAN, CLIP_STD, encoder_spec
from edgevlm.models.shared.views import one_size
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
DEFAULT = (448, 448)
# Tokens of the sequence by the names under which a processor may have others.
MARKS = {"image": "[IMG]", "image_break": "[IMG_BREAK]", "image_end": "[IMG_END]"}


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a Mistral 3 checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, a size, a feature layer or a decoder that the static form has
            not.
    """
    vision, merge = config.vision_config, config.spatial_merge_size
    if config.vision_feature_layer not in (-1, vision.num_hidden_layers):
        raise PlanError(
            f"vision_feature_layer is {config.vision_feature_layer}, and only the last layer of the"
            " encoder is supported; correct config.json"
        )
    check_resized(processor)
    image = one_size(processor, recipe, DEFAULT, vision.patch_size * merge, CLIP_MEAN, CLIP_STD)
    _check_longest(processor, image)
    grid, decoder = _grid(config, image), decoder_spec(config.text_config)
    mark, line, end = (processor.get(f"{name}_token", text) for name, text in MARKS.items())
    rows, columns = grid.tokens
    spec = encoder_spec(vision, vision.num_hidden_layers, grid.height * grid.width)
    return Description(
        image=image,
        view_tokens=rows * columns,
        shape=VisualShape((grid.tokens,), decoder.width, *image.tiling),
        encoder=replace(spec, unmergeable=UNMERGEABLE, lacking=LACKING),
        decoder=decoder,
        full_image=_rows(rows, columns, line, end),
        reduced_image=(LayoutItem("visual", start=0, stop=rows * columns), end),
        placeholder=mark,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core = model.model
    tower, grid = core.vision_tower, _grid(model.config, description.image)
    with torch.device("cpu"):
        own = type(tower.patch_positional_embedding)
        frequencies, _ = own.compute_axial_rope_parameters(tower.config)
    return ModelParts(
        encoder=EncoderParts(
            spec=description.encoder,
            embedding=Patches(tower, grid),
            layers=tuple(map(PixtralLayer, tower.transformer.layers)),
            connector=Connector(core.multi_modal_projector, grid),
            fold=Fold(grid),
            # Those of rows, and those of columns.
            grid=GridTables(grid, frequencies.reshape(2, -1)),
        ),
        pack=nn.Identity(),
        decoder=decoder_parts(core.language_model, description.decoder),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [1, 3, h_px, w_px] -> [1, N, C]."""
    sizes = torch.tensor([pixel_values.shape[2:]])
    found = model.model.get_image_features(pixel_values, sizes, return_dict=True).pooler_output
    return torch.cat(tuple(found))[None]


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """None: a picture of the size keeps it."""
    return {}


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor.

    It chooses a size by the picture's shape: where that is another, it gets the picture at ours.
    """
    inputs = processor([picture], return_tensors="np")
    if inputs["pixel_values"].shape[2:] != (image.height, image.width):
        resized = picture.resize((image.width, image.height), processor.resample)
        inputs = processor([resized], return_tensors="np")
    return inputs["pixel_values"]


def notes(config: Any, description: Description) -> tuple[str, ...]:
    """Where the context ends, if that is before the positions of config.json."""
    decoder = description.decoder
    if not decoder.beyond:
        return ()
    return (
        f"the context has at most {decoder.max_positions:,} of the"
        f" {config.text_config.max_position_embeddings:,} tokens of config.json: beyond them the"
        f" model {decoder.beyond}",
    )


def _grid(config: Any, image: ImageSpec) -> PatchGrid:
    side = config.vision_config.patch_size
    return PatchGrid(image.height // side, image.width // side, config.spatial_merge_size)


def _rows(rows: int, columns: int, line: str, end: str) -> tuple[str | LayoutItem, ...]:
    items: list[str | LayoutItem] = []
    for row in range(rows):
        tokens = LayoutItem("visual", start=row * columns, stop=(row + 1) * columns)
        items += [tokens, line if row + 1 < rows else end]
    return tuple(items)


def _check_longest(processor: dict[str, Any], image: ImageSpec) -> None:
    """Refuse a size that the processor would make smaller."""
    size = processor.get("size")
    most = size.get("longest_edge") if isinstance(size, dict) else size
    if isinstance(most, int) and max(image.height, image.width) > most:
        raise PlanError(
            f"size {image.height}x{image.width} has a side of more than {most} pixels, the longest"
            " that the image processor keeps; give a smaller --size"
        )
