"""Gemma 4 (E2B, E4B and dense ones): an encoder of any grid, and a decoder with a second table.

A picture is one view of `--size`, the largest square that the image processor makes (768x768 pixels
as published) unless told; 48x48 pixels become a token.
A frame of a clip is such a picture, of 384x384 pixels as published, with its time in front.
Each layer of the decoder gets a row of numbers of its own for every token; layers with a window
have smaller heads than the others, and the last layers read the caches of earlier ones. In larger
models the tokens of a picture see each other, in layers with a window alone.

Source: transformers' `models/gemma4`. Limits: sound is left out; no mixture of experts.
"""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.documents import NUMBERS
from edgevlm.models.family import RESAMPLE, Description
from edgevlm.models.shared.decoders import gated
from edgevlm.models.shared.encoders.gemma4 import tower_parts, tower_spec
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_resized, normalization
from edgevlm.models.shared.views import check_whole
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
START, END = "<|image>", "<image|>"
VISUAL = {"image": "<|image|>", "video": "<|video|>"}
MOST_TOKENS = {"image": 280, "video": 70}  # of a picture or a frame, where nothing is said


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a Gemma 4 checkpoint; see `Description`.

    Raises:
        PlanError: For tiles, a size, or an encoder or decoder that the static form has not.
    """
    vision, text = config.vision_config, config.text_config
    if vision is None:
        raise PlanError("this checkpoint reads no pictures: config.json has no vision_config")
    if text.enable_moe_block:
        raise PlanError(
            "enable_moe_block is not supported: layers with experts have no static form"
        )
    image = _image(vision, processor, recipe)
    (height, width), fold = _grid(vision, image), vision.pooling_kernel_size
    rows, columns = height // fold, width // fold
    kind, n = image.subject, rows * columns
    both_ways = text.use_bidirectional_attention == "vision"
    decoder = decoder_spec(text, mask="pictures" if both_ways else "causal")
    items = _clip(image.frames, n) if kind == "video" else _view(0, n)
    return Description(
        image=image,
        view_tokens=n,
        shape=VisualShape(((rows, columns),) * image.views, decoder.width, *image.tiling),
        encoder=tower_spec(vision, height * width),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=processor.get("image_token", VISUAL[kind]) if kind == "image" else VISUAL[kind],
        content_type=kind,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, vision = model.model, model.config.vision_config
    text, spec = core.language_model, description.decoder
    decoder = gated.with_gates(decoder_parts(text, spec), text)
    return ModelParts(
        encoder=tower_parts(
            description.encoder,
            core.vision_tower,
            core.embed_vision,
            _grid(vision, description.image),
        ),
        pack=nn.Identity(),
        decoder=replace(
            decoder,
            language_model=core if spec.mask == "pictures" else text,  # the whole makes the masks
            own_inputs=lambda groups: {"mm_token_type_ids": (groups >= 0).long()},
        ),
        table=(text.embed_tokens.weight,),
        head=model.lm_head.weight,
        logit_softcap=float(text.config.final_logit_softcapping or 0),
        layer_table=text.embed_tokens_per_layer.weight if spec.per_layer else None,
    )


def side_by_side(config: Any) -> dict[str, tuple[int, int]]:
    """What a trial of the first layers cuts: the second table, and its projection."""
    return gated.side_by_side(config.text_config)


def left_out(config: Any, all_layers: bool) -> tuple[str, ...]:
    """Weights that no picture needs: those of sound."""
    return ("model.audio_tower.", "model.embed_audio.")


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [P, 3, h_px, w_px] -> [1, P*N, C]."""
    vision, views = model.config.vision_config, len(pixel_values)
    height, width = _grid(vision, description.image)
    side = vision.patch_size
    # It takes pixels of 0 to 1 and makes them -1 to 1 itself.
    cut = (pixel_values / 2 + 0.5).reshape(views, 3, height, side, width, side)
    patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(views, height * width, -1)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((columns, rows), dim=-1).reshape(1, -1, 2).expand(views, -1, -1)
    found = model.model.get_image_features(patches, places, return_dict=True).pooler_output
    return torch.cat(tuple(found))[None]


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """A picture of the size keeps it."""
    return {"do_resize": False}


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor, from -1 to 1.

    It chooses a size by the picture's shape: where that is another, it gets the picture at ours.
    """
    side = processor.patch_size
    grid = (image.height // side, image.width // side)
    inputs = processor([picture], return_tensors="np")
    columns, rows = inputs["image_position_ids"][0].max(0) + 1
    if (rows, columns) != grid:
        resized = picture.resize((image.width, image.height), processor.resample)
        inputs = processor([resized], return_tensors="np", **processor_options(image))
    patches = inputs["pixel_values"][0, : grid[0] * grid[1]]
    view = patches.reshape(*grid, side, side, 3).transpose(4, 0, 2, 1, 3)
    return 2 * view.reshape(1, 3, image.height, image.width).astype(np.float32) - 1


def _image(vision: Any, processor: dict[str, Any], recipe: Recipe) -> ImageSpec:
    """Preprocessing to the recipe's size; the model's own 2 (x - 0.5) is a part of it."""
    check_whole(recipe, "gemma4")
    kind = "video" if recipe.frames > 1 else "image"
    if kind == "video":
        processor = processor.get("video_processor") or processor
    check_resized(processor)
    for key, own in (("patch_size", 16), ("pooling_kernel_size", 3)):
        said, read = processor.get(key, own), getattr(vision, key)
        if said != read:
            raise PlanError(
                f"the {kind} processor's {key} is {said}, the encoder's {read}; correct"
                f" {NUMBERS[kind]}"
            )
    side = vision.patch_size * vision.pooling_kernel_size
    most = processor.get("max_soft_tokens", MOST_TOKENS[kind])
    square = isqrt(most) * side
    height, width = recipe.size or (square, square)
    if height % side or width % side:
        raise PlanError(
            f"size {height}x{width} has sides that are no multiples of {side} pixels; give such as"
            f" {square}x{square}"
        )
    tokens = height * width // side**2
    if tokens > most:
        raise PlanError(
            f"size {height}x{width} makes {tokens} tokens of a picture, and the {kind} processor at"
            f" most {most}; give a smaller --size"
        )
    means, deviations = normalization({"do_normalize": False} | processor, 0.0, 1.0)
    (m0, m1, m2), (d0, d1, d2) = means, deviations
    return ImageSpec(
        height=height,
        width=width,
        rows=1,
        columns=1,
        global_view="first",
        frames=recipe.frames,
        resample=RESAMPLE[processor.get("resample", 3)],
        mean=(m0 + d0 / 2, m1 + d1 / 2, m2 + d2 / 2),
        std=(d0 / 2, d1 / 2, d2 / 2),
    )


def _clip(frames: int, n: int) -> tuple[str | LayoutItem, ...]:
    """Frames, each behind its time, with blanks between."""
    items: tuple[str | LayoutItem, ...] = ()
    for frame in range(frames):
        time = LayoutItem("timestamp", start=frame, prefix=" " if frame else "", suffix=" ")
        items += (time, *_view(frame, n))
    return items


def _view(index: int, n: int) -> tuple[str | LayoutItem, ...]:
    """The tokens of a view between their marks."""
    return START, LayoutItem("visual", start=index * n, stop=(index + 1) * n), END


def _grid(vision: Any, image: ImageSpec) -> tuple[int, int]:
    """Rows and columns of patches."""
    return image.height // vision.patch_size, image.width // vision.patch_size
