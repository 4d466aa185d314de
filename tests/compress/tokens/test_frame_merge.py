"""Merging over neighbouring frames: TempMe's arithmetic, the levels, and a clip by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress.tokens.frame_merge import Method, levels
from edgevlm.graphs.matching import match_joined
from edgevlm.graphs.visual_shape import VisualShape


def test_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """Tokens, sizes, and what each is made of: class tokens of one, two and four frames."""
    for case in vectors("tempme"):
        metric, x, size = (torch.from_numpy(case[f"in_{n}"]) for n in ("metric", "x", "size"))
        r, classes = int(case["param_r"]), int(case["param_cls_num"])

        def run(
            metric: Tensor, x: Tensor, size: Tensor, r: int = r, classes: int = classes
        ) -> tuple[Tensor, Tensor, Tensor]:
            matching = match_joined(metric, r, classes)
            return (*matching.merge(x, size), matching.output_index())

        for row in range(len(x)):
            inputs = metric[row], x[row], size[row]
            found = [run(*inputs)]
            if classes == 2:
                found.append(engine(trace(run, *inputs))(*inputs))
            for tokens, sizes, index in found:
                expected = case["out_x"][row]
                bound = 1e-4 * np.abs(expected).max()
                np.testing.assert_allclose(tokens, expected, rtol=0, atol=bound)
                np.testing.assert_allclose(sizes, case["out_size"][row], rtol=1e-6)
                source = np.asarray(index)[None] == np.arange(len(expected))[:, None]
                np.testing.assert_array_equal(source, case["out_source"][row])


def test_a_still_clip_by_hand() -> None:
    """Two frames of two tokens: each of even index merges into its like in the other frame."""
    frame = [[1.0, 0.0], [0.0, 1.0]]
    clip = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 3.0], [5.0, 0.0]]])
    shape = VisualShape(((1, 2),) * 2, 2, frames=2)
    tokens, positions = Method(tokens=2)(clip, shape=shape)
    # 0 and 2 are candidates: 0 goes to 3, 2 to 1.
    assert tokens.tolist() == [[[0.0, 2.0], [3.0, 0.0]]]
    assert positions.tolist() == [[1, 3]]
    one, _ = Method(tokens=1)(torch.tensor([[*frame, *frame]]), shape=shape)
    assert one.tolist() == [[[0.5, 0.5]]]


@pytest.mark.parametrize(
    ("frames", "tokens", "kept", "counts"),
    [
        (4, 16, 16, [[16, 16], [16]]),
        (8, 16, 16, [[16, 16, 16, 16], [16, 16], [16]]),
        (3, 8, 6, [[8, 4], [6]]),
        (2, 4, 8, [[8]]),
        (5, 2, 1, [[2, 2, 1], [1, 1], [1]]),
    ],
)
def test_levels(frames: int, tokens: int, kept: int, counts: list[list[int]]) -> None:
    """By the same ratio at each, and K at the last."""
    assert levels(frames, tokens, kept) == counts


def test_levels_never_grow() -> None:
    """Of any K: no clip is left with more tokens than it has, and the last level leaves K."""
    for frames in (2, 3, 5, 8, 11):
        for kept in range(1, 6 * frames + 1):
            left = [6] * frames
            for counts in levels(frames, 6, kept):
                most = [sum(left[i : i + 2]) for i in range(0, len(left), 2)]
                assert all(1 <= count <= top for count, top in zip(counts, most, strict=True))
                left = counts
            assert left == [kept]


def test_a_mean_has_the_weight_of_its_tokens(features: Tensor) -> None:
    """Down to one token it is the mean of all."""
    shape = VisualShape(((4, 4),) * 4, 16, frames=4)
    one, _ = Method(tokens=1)(features, shape=shape)
    torch.testing.assert_close(one[0, 0], features[0].mean(0), rtol=0, atol=1e-6)


def test_halves_in_onnx(features: Tensor, trace: Any, engine: Any) -> None:
    """To a quarter of four frames: all tokens of even index merge, and none of them stays."""
    shape = VisualShape(((4, 4),) * 4, 16, frames=4)

    def quarter(x: Tensor) -> Any:
        return Method(tokens=16)(x, shape=shape)

    expected, positions = quarter(features)
    tokens, at = engine(trace(quarter, features))(features)
    np.testing.assert_array_equal(at, positions.numpy())
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=1e-5)
