"""The blocks of a vision language model: vision, reduce, decoder and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from edgevlm.bundle.functions import Block
from edgevlm.bundle.kinds import vlm
from edgevlm.bundle.kinds.vlm import VlmHost
from edgevlm.graphs.blocks import build, cut_rows
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.signals import is_rotary
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.planning.blocks import Stored, finished, stage_blocks


def make_blocks(
    host: VlmHost, limit: int, parts: ModelParts, shape: VisualShape, method: Any, stored: Stored
) -> tuple[Block, ...]:
    """All blocks in the order in which a prompt runs them.

    Args:
        host: The constants of the plan.
        limit: Block size in bytes of float32.
        parts: The model, with or without memory for its weights.
        shape: Token grids that the method sees.
        method: The method of site `tokens`.
        stored: Bytes of weights in their files.
    """
    blocks = [
        *stage_blocks("vision", _vision_parts(parts), limit, stored),
        Block("reduce-0", "reduce", (0, 1), 0, ()),
        *([Block("reduce-1", "reduce", (1, 2), 0, ())] if host.stream else ()),
        *stage_blocks("decoder", _decoder_parts(parts), limit, stored, host.states.own),
        *_head(host, limit, parts, stored),
    ]
    return finished(blocks, vlm, host, lambda block: build(block, parts, method, shape))


def _vision_parts(parts: ModelParts) -> list[Sequence[nn.Module]]:
    """The modules of the encoder, the constants of its grid with each layer that takes them."""
    grid = () if parts.encoder.grid is None else (parts.encoder.grid,)
    return [(m, *grid) if is_rotary(m) else (m,) for m in parts.encoder.modules]


def _decoder_parts(parts: ModelParts) -> list[Sequence[nn.Module]]:
    """The layers, the norm with the last and with those by which a method compares tokens."""
    layers, pruning = parts.decoder.layers, parts.pruning
    normed = {len(layers) - 1, *(pruning.norming if pruning else ())}
    return [
        (layer, parts.decoder.norm) if index in normed else (layer,)
        for index, layer in enumerate(layers)
    ]


def _head(host: VlmHost, limit: int, parts: ModelParts, stored: Stored) -> list[Block]:
    """Blocks of the head, cut by rows of the vocabulary; none is partly of the table."""
    channels, blocks = host.embedding.columns, list[Block]()
    count = parts.head.shape[0]
    shared = parts.shared_rows if stored.target.shares_table else 0
    for first, last, shares in ((0, shared, "embedding"), (shared, count, "")):
        for start, stop in cut_rows(last - first, 4 * channels, limit) if first < last else ():
            size = stored.matrix(stop - start, channels, "head")
            span, name = (first + start, first + stop), f"head-{len(blocks)}"
            blocks.append(Block(name, "head", span, size, (), shares))
    return blocks
