"""Gemma 3n (E2B, E4B): MobileNetV5 of timm, and a decoder whose rows go through it as streams.

A picture is one view, 768 pixels a side as published, of 256 tokens. Layers get rows of a second
table, the last ones read the caches of earlier ones, and the first ones keep few activations of
their MLP. Words for pictures and sounds have rows of their own, which the model computes.

Source: transformers' `models/gemma3n`; timm's `models/mobilenetv5.py`. Limits: needs timm and
torchvision; still images, sound and clips are left out; the encoder is one block of 1.2 GB in
float32, and methods that read or merge its tokens are refused, for it has images of channels
between its layers.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import rms_norm
from edgevlm.graphs.parts import DecoderParts, DecoderSpec, EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.decoders import gated
from edgevlm.models.shared.decoders.altup import with_streams
from edgevlm.models.shared.embedders import square_image
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_view, sides
from edgevlm.models.shared.siglip import processor_options, processor_views, reference_features
from edgevlm.models.shared.towers import TimmTower, check_timm, whole_spec
from edgevlm.models.shared.views import check_one_view
from edgevlm.recipe import Recipe

__all__ = [
    "AUTO_CLASS",
    "KIND",
    "describe",
    "left_out",
    "parts",
    "processor_options",
    "processor_views",
    "reference_features",
    "side_by_side",
]

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
START, END, VISUAL = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
TOWER, STRIDE, SIDE = "mobilenetv5_300m_enc", 16, 768
PLAIN = "its encoder is convolutions, between whose layers there are no tokens"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a Gemma 3n checkpoint; see `Description`.

    Raises:
        ModelError: If timm is missing.
        PlanError: For tiles, a clip, another encoder, a view that its encoder does not divide, or
            a decoder that the static form has not.
    """
    check_timm("gemma3n")
    check_one_view(recipe, "gemma3n")
    vision, text = config.vision_config, config.text_config
    if vision.architecture != TOWER:
        raise PlanError(f"vision tower '{vision.architecture}' is not supported, expected {TOWER}")
    _check_words(config)
    side, grid = _view(config, processor)
    decoder = decoder_spec(text)
    items = (f"\n\n{START}", LayoutItem("visual", start=0, stop=grid * grid), f"{END}\n\n")
    return Description(
        image=square_image(side, processor, 2, 0.5, 0.5),
        view_tokens=grid * grid,
        shape=VisualShape(((grid, grid),), decoder.width),
        encoder=whole_spec(grid * grid, vision.hidden_size, PLAIN),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=processor.get("image_token", VISUAL),
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, spec = model.model, description.encoder
    text, tower = core.language_model, TimmTower(core.vision_tower.timm_model)
    table, head = text.embed_tokens.weight, model.lm_head.weight
    first = core.embed_vision.vocab_offset
    own = _own_words(core) / description.decoder.table_scale
    return ModelParts(
        encoder=EncoderParts(spec, tower, (), Connector(core.embed_vision), nn.Identity()),
        pack=nn.Identity(),
        decoder=streams_decoder(text, description.decoder),
        table=(table.detach()[:first], own),
        head=head,
        logit_softcap=float(text.config.final_logit_softcapping or 0),
        layer_table=text.embed_tokens_per_layer.weight,
        tied_rows=first if head is table else 0,
    )


def side_by_side(config: Any) -> dict[str, tuple[int, int]]:
    """What a trial of the first layers cuts: the second table, and its projection."""
    return gated.side_by_side(config.text_config)


def left_out(config: Any, all_layers: bool) -> tuple[str, ...]:
    """Weights that no picture needs: those of sound, but for its words."""
    return ("model.audio_tower.",)


def streams_decoder(text: Any, spec: DecoderSpec) -> DecoderParts:
    """Static modules over transformers' text model."""
    return with_streams(gated.with_gates(decoder_parts(text, spec), text), text)


class Connector(nn.Module):
    """Tokens normed, projected, and normed without a weight: [1, N, D] -> [1, N, C]."""

    ones: Tensor

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.norm, self.projection = embedder.soft_embedding_norm, embedder.embedding_projection
        self.eps, self.factor = embedder.eps, embedder.multimodal_hidden_size**0.5
        with torch.device("cpu"):
            ones = torch.ones(embedder.text_hidden_size)
            self.register_buffer("ones", ones, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.projection(rms_norm(self.norm, x * self.factor))
        return nn.functional.rms_norm(projected, self.ones.shape, self.ones, self.eps)


def _view(config: Any, processor: dict[str, Any]) -> tuple[int, int]:
    """Pixels and tokens along a side of a picture.

    Raises:
        PlanError: If the processor's size, the encoder's grid and the config's tokens do not fit.
    """
    count = config.vision_soft_tokens_per_image
    grid = (config.vision_config.model_args or {}).get("msfa_output_resolution", 16)
    if count != grid**2:
        raise PlanError(
            f"vision_soft_tokens_per_image is {count}, and the encoder gives {grid}x{grid} tokens;"
            f" set {grid**2} in config.json"
        )
    size = processor.get("size", SIDE)
    side = max(sides(size))
    check_view(processor, side)
    if side % (STRIDE * grid):
        raise PlanError(
            f"the image processor's size is {size}, expected a multiple of {STRIDE * grid} pixels;"
            f" set {SIDE} in preprocessor_config.json"
        )
    return side, isqrt(count)


def _check_words(config: Any) -> None:
    """Refuse words of pictures and sounds that are not the last ones of the vocabulary.

    Raises:
        PlanError: Saying what is expected.
    """
    vision, sound, text = config.vision_config, config.audio_config, config.text_config
    first, second, last = vision.vocab_offset, sound.vocab_offset, text.vocab_size
    if (first + vision.vocab_size, second + sound.vocab_size) != (second, last):
        raise PlanError(
            f"words for pictures begin at {first} and those for sounds at {second} of {last},"
            f" expected {vision.vocab_size} and then {sound.vocab_size} to be the last; correct"
            " vocab_offset in config.json"
        )
    if text.vocab_size_per_layer_input > config.image_token_id:
        raise PlanError(
            f"vocab_size_per_layer_input is {text.vocab_size_per_layer_input}, expected no row for"
            f" image_token_id {config.image_token_id}; correct config.json"
        )


def _own_words(core: Any) -> Tensor:
    """Rows [n, C] of the last words, for pictures and for sounds, as the model computes them."""
    made = []
    with torch.no_grad():
        for embedder in (core.embed_vision, core.embed_audio):
            start, device = embedder.vocab_offset, embedder.embedding.weight.device
            ids = torch.arange(start, start + embedder.vocab_size, device=device)
            made.append(embedder(input_ids=ids))
    return torch.cat(made)
