"""The parts of a diffusion model and the modules of its blocks.

    text      TextStack      layers of the text encoder, hidden and the mask of its words
    denoiser  DenoiserBlock  embeddings, layers and head; what layers take goes beside hidden
    vae       VaeBlock       parts of the video decoder, one latent frame of a tile at a time

A module's forward takes the tensors of `bundle.kinds.diffusion.signature` in its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgevlm.bundle.functions import Block


@dataclass(frozen=True)
class DiffusionParts:
    """The modules of a diffusion model.

    Attributes:
        text: Layers of the text encoder: hidden [1, S, Ct], mask [1, S] -> hidden.
        table: Rows of its tokens [V, Ct].
        denoiser: Embeddings, layers, head, see `bundle.kinds.diffusion`.
        vae: Parts of the video decoder: hidden [1, C, F, h, w] and caches, none of the first latent
            frame -> hidden, and caches for the next one.
    """

    text: tuple[nn.Module, ...]
    table: Tensor
    denoiser: tuple[nn.Module, ...]
    vae: tuple[Any, ...]

    @property
    def tables(self) -> dict[str, tuple[Tensor, ...]]:
        """The matrices of each table of the host, by its name."""
        return {"embedding": (self.table,)}


class TextStack(nn.Module):
    """`encode`: hidden [1, S, Ct], mask [1, S] -> hidden, through the block's layers."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden


class DenoiserBlock(nn.Module):
    """`step`: the block's parts; `begins` and `ends` say whether it has embeddings and head."""

    def __init__(self, parts: Sequence[nn.Module], begins: bool, ends: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(parts[begins : len(parts) - ends])
        self.embeddings = parts[0] if begins else None
        self.head = parts[-1] if ends else None

    def forward(self, hidden: Tensor, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        rest: list[Tensor] = [*given]
        beside: tuple[Tensor, ...] = ()
        time = rest[-1]
        if self.embeddings is not None:
            hidden, *rest, time = self.embeddings(hidden, *rest)
            beside = *rest, time
        elif self.head is not None:
            rest = rest[:-1]
        for layer in self.layers:
            hidden = layer(hidden, *rest)
        if self.head is not None:
            velocity: Tensor = self.head(hidden, time)
            return velocity
        return (hidden, *beside) if beside else hidden


class VaeBlock(nn.Module):
    """`first`, `next`: hidden and the caches of all parts in turn -> hidden, and their new caches.

    Args:
        parts: Parts of the video decoder.
        counts: Caches of each part.
    """

    def __init__(self, parts: Sequence[nn.Module], counts: Sequence[int]) -> None:
        super().__init__()
        self.parts, self.counts = nn.ModuleList(parts), tuple(counts)

    def forward(self, hidden: Tensor, *caches: Tensor) -> Tensor | tuple[Tensor, ...]:
        given, at = list[Tensor](), 0
        for part, count in zip(self.parts, self.counts, strict=True):
            own = caches[at : at + count]
            hidden, *new = part(hidden, *own)
            given += new
            at += count
        return (hidden, *given) if given else hidden


def build_diffusion(block: Block, parts: DiffusionParts, host: Any) -> nn.Module:
    """The module of a block, over the weights of the parts."""
    start, stop = block.span
    if block.stage == "text":
        return TextStack(parts.text[start:stop])
    if block.stage == "denoiser":
        chosen = parts.denoiser[start:stop]
        return DenoiserBlock(chosen, start == 0, stop == len(parts.denoiser))
    counts = [len(part.caches) for part in host.vae.parts[start:stop]]
    return VaeBlock(parts.vae[start:stop], counts)
