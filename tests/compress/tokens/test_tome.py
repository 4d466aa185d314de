"""ToMe against its reference, by hand, and the laws of merging."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress.tokens.tome import Method
from edgevlm.graphs.matching import Matching, bipartite_soft_matching


def test_by_hand() -> None:
    """Token 0 and token 1 point the same way and become their mean; 2 and 3 are only 45 degrees."""
    features = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    kept, positions = Method(tokens=3)(features)
    assert kept.tolist() == [[[1.5, 0.0], [0.0, 1.0], [1.0, 1.0]]]
    assert positions.tolist() == [[1, 2, 3]]


def _members(matching: Matching) -> Tensor:
    """Membership f32 [n - r, n]: 1 where the input token is part of the output row."""
    return (matching.remaining.unsqueeze(1) == matching.target).float()


def _merged(case: dict[str, Any], *inputs: Tensor) -> list[Tensor]:
    """Tokens, sizes, plain means and membership, one picture after the other."""
    r, class_token = int(case["param_r"]), bool(case["param_class_token"])
    made = []
    for metric, x, size in zip(*inputs, strict=True):
        matching = bipartite_soft_matching(metric, r, class_token=class_token)
        plain, _ = matching.merge(x, torch.ones_like(size))
        made.append((*matching.merge(x, size), plain, _members(matching)))
    return [torch.stack(parts) for parts in zip(*made, strict=True)]


def _compare(case: dict[str, Any], outputs: Any) -> None:
    x, size, mean, members = (np.asarray(output) for output in outputs)
    np.testing.assert_array_equal(members.astype(bool), case["out_source"])
    np.testing.assert_array_equal(size, case["out_size"])
    np.testing.assert_allclose(x, case["out_x"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(mean, case["out_x_mean"], rtol=0, atol=1e-5)


def test_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """Same rows in the same order, with and without class token; ONNX Runtime too."""
    for case in vectors("tome"):
        inputs = tuple(torch.from_numpy(case[f"in_{name}"]) for name in ("metric", "x", "size"))

        def merged(*inputs: Tensor, case: dict[str, Any] = case) -> list[Tensor]:
            return _merged(case, *inputs)

        _compare(case, merged(*inputs))
        _compare(case, engine(trace(merged, *inputs))(*inputs))


def test_sizes_are_carried(features: Tensor) -> None:
    """Merging to one token is the plain mean of all, whatever merged first."""
    for options in ({}, {"r": 5}):
        kept, _ = Method(tokens=1, **options)(features[:, :57])
        torch.testing.assert_close(kept[:, 0], features[:, :57].mean(1), rtol=0, atol=1e-5)


def test_merging_loses_nothing(features: Tensor) -> None:
    """Each input is in one row, sums are kept, and unmerging gives lone tokens back."""
    matching = bipartite_soft_matching(features[0], 20)
    merged, size = matching.merge(features[0], torch.ones(64, 1))
    assert _members(matching).sum(0).tolist() == [1.0] * 64
    torch.testing.assert_close((merged * size).sum(0), features[0].sum(0), rtol=0, atol=1e-4)
    rows = matching.output_index()
    assert torch.equal(matching.remaining[rows], matching.target)
    alone = size[rows, 0] == 1
    assert 24 <= int(alone.sum()) < 44  # 44 rows; 20 merges leave 24 to 43 of them alone
    assert torch.equal(merged[rows][alone], features[0, alone])


def test_small_rounds_differ(features: Tensor) -> None:
    """With r the most similar merge first, so fewer unlike tokens are mixed."""
    spread = []
    for r in (None, 4):
        kept, _ = Method(tokens=32, r=r)(features)
        distance = (features[0].unsqueeze(1) - kept[0].unsqueeze(0)).square().sum(-1)
        spread.append(float(distance.amin(1).mean()))
    assert spread[1] < spread[0]


def test_r_is_clamped() -> None:
    """At most half merge; the class token never does."""
    metric = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert bipartite_soft_matching(metric, 9).remaining.shape == (5,)
    matching = bipartite_soft_matching(metric, 9, class_token=True)
    assert matching.remaining.tolist() == [0, 1, 3, 5, 7]
    assert int(matching.target[0]) == 0


def test_wrong_r() -> None:
    """Refused when the method is made."""
    message = r"^r is the most tokens merged in one round, at least 1, got 0$"
    with pytest.raises(ValueError, match=message):
        Method(tokens=4, r=0)


def test_copies_do_not_flip(trace: Any, engine: Any) -> None:
    """A still video with an odd frame: cosines of 1 differ by rounding, the first copy wins."""
    frame = torch.randn(1, 25, 32, generator=torch.Generator().manual_seed(0))
    features = frame.repeat(1, 4, 1)
    method = Method(tokens=30)
    kept, positions = method(features)
    in_onnx, onnx_positions = engine(trace(method, features))(features)
    np.testing.assert_array_equal(onnx_positions, positions.numpy())
    np.testing.assert_allclose(in_onnx, kept.numpy(), rtol=0, atol=1e-5)
