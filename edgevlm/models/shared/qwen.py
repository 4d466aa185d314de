"""What families of the Qwen-VL line have in common: their description and their static modules.

A picture is one view of `--size` and stands for a grid of tokens in the text: positions have three
axes, time, height and width. Of a clip (`--frames`) each group of frames is a view and a grid. A
family says in a `Line` what is its own.

Limits: those of `shared.encoders.qwen` and `shared.qwen_pictures`; methods that merge inside the
encoder or compare its keys are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.graphs.parts import EncoderParts, EncoderSpec, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.encoders.qwen import (
    Fold,
    GridTables,
    Patches,
    PatchGrid,
    RotaryLayer,
    encoder_spec,
    layer_windows,
    learned_positions,
    merger_connector,
    patch_grid,
    rotary_frequencies,
    side_multiple,
)
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.qwen_pictures import (
    Clips,
    Marks,
    as_patches,
    clip_spec,
    image_items,
    image_spec,
)
from edgevlm.recipe import Recipe


def _connector(grid: PatchGrid, tower: Any) -> nn.Module:
    return merger_connector(grid, tower.merger)


@dataclass(frozen=True)
class Line:
    """What a family of the line has of its own.

    Attributes:
        size: Height and width of a view where the recipe names none.
        mean: Mean of pixels where the image processor names none.
        std: Their deviation where it names none.
        marks: What stands for a picture in the text.
        clips: How it takes clips; None where it takes none.
        counts_frames: Whether the bounds of the image processor count both frames that a still is.
        windows: Whether layers of the encoder but some see windows alone.
        learned: Whether its patches have learned positions beside.
        spec: Numbers of the encoder, from its config and the patches of a view.
        layer: A layer of the encoder, from the original's and the number of its windows.
        connector: What makes tokens of patches, from those of a view and the original's encoder.
    """

    size: tuple[int, int]
    mean: Any
    std: Any
    marks: Marks = field(default_factory=Marks)
    clips: Clips | None = None
    counts_frames: bool = False
    windows: bool = False
    learned: bool = False
    spec: Callable[[Any, PatchGrid], EncoderSpec] = encoder_spec
    layer: Callable[[nn.Module, int], nn.Module] = RotaryLayer
    connector: Callable[[PatchGrid, Any], nn.Module] = _connector

    def describe(self, config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
        """Numbers of a checkpoint; see `Description`.

        Raises:
            PlanError: For a clip, tiles, a size, a processor or a decoder that the static form has
                not.
        """
        vision, marks = config.vision_config, self.marks
        image = self._image(vision, processor, recipe)
        grid, decoder = patch_grid(vision, image, self.windows), decoder_spec(config.text_config)
        token = processor.get("image_token", marks.image)
        content, sides = "image", (marks.start, token, marks.end)
        items = image_items(*grid.tokens, marks)
        if self.clips is not None and recipe.frames > 1:
            mark = processor.get("video_token", marks.video)
            content, sides = "video", (marks.video_start, mark, marks.video_end)
            items = self.clips.items(vision, image, grid.tokens, marks)
            token = token if self.clips.as_images else mark
        return Description(
            image=image,
            view_tokens=grid.tokens[0] * grid.tokens[1],
            shape=VisualShape((grid.tokens,) * image.views, decoder.width, *image.tiling),
            encoder=self.spec(vision, grid),
            decoder=decoder,
            full_image=items,
            reduced_image=items,
            placeholder="".join(sides),
            content_type=content,
            visual_token=token,
        )

    def parts(self, model: Any, description: Description) -> ModelParts:
        """Static modules over the weights of `model`; see `ModelParts`."""
        vision, tower = model.config.vision_config, model.model.visual
        grid = patch_grid(vision, description.image, self.windows)
        positions = learned_positions(tower, grid) if self.learned else None
        windows = layer_windows(vision, grid)
        encoder = EncoderParts(
            spec=description.encoder,
            embedding=Patches(tower.patch_embed.proj, grid, positions, description.image.depth),
            layers=tuple(map(self.layer, tower.blocks, windows)),
            connector=self.connector(grid, tower),
            fold=Fold(grid),
            grid=GridTables(grid, rotary_frequencies(tower)),
        )
        return with_decoder(model, description, encoder)

    def _image(self, vision: Any, processor: dict[str, Any], recipe: Recipe) -> ImageSpec:
        """Preprocessing of a picture, or of a clip."""
        sides = self.size, side_multiple(vision, self.windows), self.mean, self.std
        if self.clips is not None and recipe.frames > 1:
            return clip_spec(vision, processor, recipe, *sides, self.clips.counts_frames)
        counted = vision.temporal_patch_size if self.counts_frames else 1
        return image_spec(vision, processor, recipe, *sides, counted)


def with_decoder(model: Any, description: Description, encoder: EncoderParts) -> ModelParts:
    """An encoder with the language model behind it."""
    language = model.model.language_model
    return ModelParts(
        encoder=encoder,
        pack=nn.Identity(),
        decoder=decoder_parts(language, description.decoder),
        table=(language.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


def own_features(model: Any, pixel_values: Tensor, description: Description) -> Any:
    """What the model's own encoder gives of a picture or clip f32 [P, 3 * depth, h_px, w_px]."""
    patches, sides = as_patches(pixel_values, model.config.vision_config)
    clip = description.image.frames > 1
    encode = model.model.get_video_features if clip else model.model.get_image_features
    return encode(patches, sides, return_dict=True)


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [P, 3 * depth, h_px, w_px] -> [1, P * N, C]."""
    return torch.cat(tuple(own_features(model, pixel_values, description).pooler_output))[None]
