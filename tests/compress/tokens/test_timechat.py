"""TimeChat-Online's token drop against its reference, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.shared.changes import most_changed, similarity
from edgevlm.compress.tokens.timechat import Method, later_budgets
from edgevlm.graphs.visual_shape import VisualShape


def shape_of(case: dict[str, Any]) -> VisualShape:
    grid = int(case["param_grid_h"]), int(case["param_grid_w"])
    frames = int(case["param_frames"])
    return VisualShape((grid,) * frames, case["in_hidden_states"].shape[2], frames=frames)


def test_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """The relative mode of features: the tokens of the clip, in ONNX Runtime too."""
    relative = 0
    for case in vectors("timechat_dtd"):
        if case["param_method_pixel"] or case["param_absolute"]:
            continue
        shape, start = shape_of(case), int(case["param_visual_start"])
        features = torch.from_numpy(case["in_hidden_states"][:, start : start + shape.tokens])
        expected = case["out_keep_per_frame"].ravel().nonzero()[0]
        size = shape.tokens // shape.frames
        dropped = int(size * float(case["param_threshold"]))
        method = Method(tokens=size + (shape.frames - 1) * (size - dropped))
        assert method.plan(shape) == len(expected)

        def clip(x: Any, method: Any = method, shape: Any = shape) -> Any:
            return method(x, shape=shape)

        for tokens, positions in (clip(features), engine(trace(clip, features))(features)):
            assert np.asarray(positions)[0].tolist() == expected.tolist()
            np.testing.assert_array_equal(tokens, features[:, expected])
        ids = case["in_position_ids"][:, :, start + expected]
        end = start + len(expected)
        np.testing.assert_array_equal(ids, case["out_position_ids"][:, :, start:end])
        relative += 1
    assert relative


def test_cosines_equal_reference(vectors: Any) -> None:
    """Its absolute mode, with as many tokens of each frame as its threshold left."""
    for case in vectors("timechat_dtd"):
        if case["param_method_pixel"]:
            continue
        shape, start = shape_of(case), int(case["param_visual_start"])
        x = torch.from_numpy(case["in_hidden_states"][0, start : start + shape.tokens])
        x, kept = x.reshape(shape.frames, -1, x.shape[1]), case["out_keep_per_frame"][1:]
        marks = most_changed(similarity(x[:-1], x[1:]), kept.sum(1).tolist())
        np.testing.assert_array_equal(marks, kept)


@pytest.mark.parametrize(
    ("rest", "budgets"),
    [(8, (2, 2, 2, 2)), (0, (0, 0, 0, 0)), (6, (1, 2, 1, 2)), (1, (0, 0, 0, 1))],
)
def test_k_is_spread_over_the_later_frames(rest: int, budgets: tuple[int, ...]) -> None:
    assert later_budgets(5, rest) == budgets


def test_a_frame_of_a_stream(features: torch.Tensor) -> None:
    """It keeps what it keeps in a clip, by itself and the frame before it."""
    clip = features.reshape(4, 16, 16)
    shape = VisualShape(((4, 4),) * 4, 16, frames=4)
    _, positions = Method(tokens=16 + 15)(features, shape=shape)
    for t in range(1, 4):
        tokens, own = Method().of_frame(clip[t : t + 1], clip[t - 1 : t], 5)
        inside = positions[(positions >= 16 * t) & (positions < 16 * t + 16)] - 16 * t
        assert own[0].tolist() == inside.tolist()
        torch.testing.assert_close(tokens, clip[t : t + 1, own[0].long()], rtol=0, atol=0)
