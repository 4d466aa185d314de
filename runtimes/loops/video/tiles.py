"""Tiles of latents of one size, and their frames blended into a video.

A plane of latents is decoded as overlapping tiles, since the decoder's features of a whole one do
not fit in memory. Where two tiles overlap, the frames go over from one to the other in equal steps
by row, then by column, as `AutoencoderKLWan.tiled_decode` of diffusers does it.

It differs from diffusers in the last row and column of tiles. There, they are cut off by the edge,
down to a few latents; a static graph takes tiles of one size, so the last ones are moved back to
end at the edge, and what they give before the place where they would have begun is dropped. Every
latent then has at least as much around it. Tiles that begin within the last one are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgevlm.runtimes.arrays import Array


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in latents.

    Attributes:
        start: Where it lies.
        begin: The first latent of which it gives pixels; those from `start` to here are dropped.
        end: Where the next tile begins, or the edge.
    """

    start: int
    begin: int
    end: int


def spans(whole: int, tile: int, stride: int) -> tuple[Span, ...]:
    """Tiles along an axis of `whole` latents; 1 <= stride <= tile <= whole."""
    count = -(-(whole - tile) // stride) + 1
    begins = [index * stride for index in range(count)]
    ends = [*begins[1:], whole]
    starts = [min(begin, whole - tile) for begin in begins]
    return tuple(map(Span, starts, begins, ends))


@dataclass(frozen=True)
class Tile:
    """A tile of the plan: its row and column of tiles, and where it lies."""

    row: int
    column: int
    down: Span
    across: Span

    def cut(self, latents: Array, size: tuple[int, int]) -> Array:
        """Its latents [..., tile height, tile width] of a plane [..., h, w], a view."""
        top, left = self.down.start, self.across.start
        return latents[..., top : top + size[0], left : left + size[1]]


class Tiling:
    """Tiles of a plane of latents, in the order in which `blend` takes their frames.

    It keeps the overlapping rows of one row of tiles and the overlapping columns of one tile.

    Args:
        latents: Height and width of the plane.
        tile: Height and width of a tile.
        stride: Latents from the beginning of a tile to that of the next one, down and across.
        scale: Pixels of a latent's side.
    """

    def __init__(
        self,
        latents: tuple[int, int],
        tile: tuple[int, int],
        stride: tuple[int, int],
        scale: int,
    ) -> None:
        self.tile, self.scale = tile, scale
        self._overlap = [(side - step) * scale for side, step in zip(tile, stride, strict=True)]
        down, across = (
            spans(*sizes) for sizes in zip(latents, tile, stride, strict=True)
        )
        self.tiles = tuple(
            Tile(row, column, y, x) for row, y in enumerate(down) for column, x in enumerate(across)
        )
        self._above: dict[int, Array] = {}  # by column the rows that the tile below overlaps
        self._left: Array | None = None

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.tiles)

    def blend(self, tile: Tile, pixels: Array) -> tuple[slice, slice, Array]:
        """Rows and columns of the video that are done with a tile, and their pixels.

        Args:
            tile: The tile, the next one in order.
            pixels: Its frames [..., scale * tile height, scale * tile width]; overwritten.
        """
        down, across, scale = tile.down, tile.across, self.scale
        pixels = pixels[..., (down.begin - down.start) * scale :, :]
        pixels = pixels[..., (across.begin - across.start) * scale :]
        if tile.row and self._overlap[0]:
            _ramp(np.moveaxis(self._above[tile.column], -2, 0), np.moveaxis(pixels, -2, 0))
        if tile.column and self._overlap[1] and self._left is not None:
            _ramp(np.moveaxis(self._left, -1, 0), np.moveaxis(pixels, -1, 0))
        rows, columns = ((s.end - s.begin) * scale for s in (down, across))
        self._above[tile.column] = pixels[..., rows:, :].copy()
        self._left = pixels[..., columns:].copy()
        top, left = down.begin * scale, across.begin * scale
        done = pixels[..., :rows, :columns]
        return slice(top, top + rows), slice(left, left + columns), done


def _ramp(before: Array, after: Array) -> None:
    """Blend the beginning of `after` [n, ...] with the overlapping end of the tile before it."""
    extent = len(before)
    for index in range(extent):
        share = index / extent
        after[index] = before[index] * np.float32(1 - share) + after[index] * np.float32(share)
