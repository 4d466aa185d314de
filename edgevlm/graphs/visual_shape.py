"""The grids that visual tokens come from: what is known before any graph exists."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from edgevlm.errors import PlanError


@dataclass(frozen=True)
class VisualShape:
    """Grids of visual tokens.

    Attributes:
        grids: Token grid (h, w) of each tile, frame or packed image, in order.
        channels: C.
        tiles: Rows and columns of tiles that the image was cut into; (1, 1) if it was not.
        global_view: `first` or `last` if one of the grids is the whole picture beside its tiles.
        frames: F: 1 for a picture, whatever its tiles; of a clip all grids, which are its frames in
            the order of time. A group of frames that the encoder takes together counts as one.
        padding: Rows of tokens at the top and at the bottom, and columns at the left and at the
            right, of the grid of all tiles that show no picture. Families stretch a picture to its
            tiles and have none; of the methods, GlobalCom2 leaves them out.
    """

    grids: tuple[tuple[int, int], ...]
    channels: int
    tiles: tuple[int, int] = (1, 1)
    global_view: str = ""
    frames: int = 1
    padding: tuple[int, int] = (0, 0)

    @property
    def tokens(self) -> int:
        """N: tokens of all grids."""
        return sum(h * w for h, w in self.grids)


def square_shape(method: str, features: Tensor) -> VisualShape:
    """The shape of features [1, N, C] that are one square grid.

    Raises:
        PlanError: If N is not a square.
    """
    total, channels = features.shape[1], features.shape[2]
    side = math.isqrt(total)
    if side * side != total:
        raise PlanError(
            f"{method}: got {total} tokens and no grid, expected a square number;"
            " pass shape=VisualShape(grids, channels)"
        )
    return VisualShape(((side, side),), channels)


def clip_frames(method: str, shape: VisualShape | None) -> tuple[int, int]:
    """F and N of a clip: its frames, and the tokens of each.

    Raises:
        PlanError: If it is a still picture, or its frames differ in size.
    """
    if shape is None or shape.frames < 2:
        raise PlanError(
            f"{method}: works over the frames of a clip, got a still picture (or one group of"
            " frames); export with more --frames"
        )
    tokens = {h * w for h, w in shape.grids}
    if len(tokens) > 1 or len(shape.grids) != shape.frames:
        raise PlanError(
            f"{method}: got {shape.frames} frames of the grids {list(shape.grids)}, expected a grid"
            " for each, all of one size"
        )
    return shape.frames, tokens.pop()


def frames_of(method: str, features: Tensor, shape: VisualShape | None) -> Tensor:
    """Features f32 [1, F*N, C] of a clip as its frames f32 [F, N, C].

    Raises:
        PlanError: If it is a still picture, its frames differ in size, or the features have other
            tokens.
    """
    shape = shape or square_shape(method, features)
    check_shape(method, features, shape)
    return features.reshape(*clip_frames(method, shape), -1)


def check_shape(method: str, features: Tensor, shape: VisualShape) -> None:
    """Refuse features [1, N, C] that do not belong to `shape`.

    Raises:
        PlanError: If N differs.
    """
    if features.shape[1] != shape.tokens:
        raise PlanError(
            f"{method}: got {features.shape[1]} tokens, expected {shape.tokens} from the grids"
            f" {list(shape.grids)}; pass the shape that these features have"
        )
