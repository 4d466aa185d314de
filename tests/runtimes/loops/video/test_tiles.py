"""Tiles cover a plane of latents and lie within it; frames that agree are left as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.runtimes.loops.video.tiles import Span, Tiling, spans


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    whole = draw(st.integers(1, 200))
    tile = draw(st.integers(1, whole))
    return whole, tile, draw(st.integers(1, tile))


@given(sizes())
def test_tiles_cover_the_axis_and_lie_within_it(size: tuple[int, int, int]) -> None:
    whole, tile, stride = size
    found = spans(*size)
    assert found[0].begin == found[0].start == 0
    assert [span.end for span in found] == [*(span.begin for span in found[1:]), whole]
    for span in found:
        assert 0 <= span.start <= span.begin < span.end <= span.start + tile <= whole
    # The last of several reaches beyond the ramp that leads to it.
    assert len(found) == 1 or whole - found[-1].begin > tile - stride


def test_tiles_of_a_video_of_480_by_832() -> None:
    assert spans(60, 32, 24) == (Span(0, 0, 24), Span(24, 24, 48), Span(28, 48, 60))
    assert spans(104, 32, 24)[-1] == Span(72, 72, 104)
    assert spans(32, 32, 32) == (Span(0, 0, 32),)


@given(sizes(), sizes(), st.integers(1, 3))
def test_frames_that_agree_stay_as_they_are(
    down: tuple[int, int, int], across: tuple[int, int, int], scale: int
) -> None:
    down, across = (tuple(-(-n // 8) for n in size) for size in (down, across))
    latents = np.random.default_rng(0).random((2, down[0], across[0])).astype(np.float32)
    frames = latents.repeat(scale, -1).repeat(scale, -2)
    tiling = Tiling(*zip(down, across, strict=True), scale)
    given = np.full_like(frames, np.nan)
    for tile in tiling:
        pixels = tile.cut(latents, tiling.tile).repeat(scale, -1).repeat(scale, -2)
        rows, columns, done = tiling.blend(tile, pixels)
        assert np.isnan(given[:, rows, columns]).all()  # each pixel is given once
        given[:, rows, columns] = done
    np.testing.assert_allclose(given, frames, atol=1e-6)


def test_two_tiles_go_over_into_each_other_in_equal_steps() -> None:
    """2 of 4 latents are shared: the first is the left tile's, the next one half of each."""
    tiling = Tiling((1, 6), (1, 4), (1, 2), 1)
    row = np.zeros((1, 6))
    for tile, value in zip(tiling, (0.0, 1.0), strict=True):
        rows, columns, pixels = tiling.blend(tile, np.full((1, 4), value, np.float32))
        row[rows, columns] = pixels
    assert row.tolist() == [[0, 0, 0, 0.5, 1, 1]]


@pytest.mark.parametrize("at", [(0, 0), (1, 1)])
def test_a_corner_is_blended_by_row_and_then_by_column(at: tuple[int, int]) -> None:
    """Four tiles in 5x5, one of them of ones: a ramp of one pixel is the tile before."""
    tiling = Tiling((5, 5), (3, 3), (2, 2), 1)
    plane = np.zeros((5, 5))
    for tile in tiling:
        value = float((tile.row, tile.column) == at)
        rows, columns, pixels = tiling.blend(tile, np.full((3, 3), value, np.float32))
        plane[rows, columns] = pixels
    expected = np.zeros((5, 5))
    if at == (0, 0):  # a ramp of one pixel has the tile before alone
        expected[:3, :3] = 1
    else:
        expected[3:, 3:] = 1
    assert plane.tolist() == expected.tolist()
