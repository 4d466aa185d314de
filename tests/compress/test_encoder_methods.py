"""Methods of site `vision` against their references, their plans, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress import dymu, mustdrop, token_transforming, tome
from edgevlm.compress.mustdrop import merge_windows
from edgevlm.errors import PlanError
from edgevlm.graphs.matching import bipartite_soft_matching


def test_windows_by_hand() -> None:
    """4 x 4 patches, windows of 2 x 2: the last window is all alike and becomes its mean."""
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    x[[10, 11, 14, 15]] = torch.tensor([[1.0], [2.0], [3.0], [6.0]]) * torch.ones(3)
    rows, sizes, place = merge_windows(x, 2, 1)
    assert rows[0].tolist() == [3.0] * 3
    assert sizes[:, 0].tolist() == [4.0] + [1.0] * 12
    assert place.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0, 11, 12, 0, 0]
    assert torch.equal(rows.index_select(0, place)[:10], x[:10])


def test_mustdrop_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """The same rows at the same number of windows, by threshold or fixed; ONNX Runtime too."""
    for case in vectors("mustdrop"):
        window, wanted = int(case["param_window"]), case["out_x"].shape[1]
        x = torch.from_numpy(case["in_x"])
        method = mustdrop.EncoderMethod(patches=wanted - 1, window=window)
        removed = x.shape[1] - wanted

        def run(x: Tensor, method: Any = method, removed: int = removed) -> tuple[Tensor, ...]:
            size = torch.ones(x.shape[1], 1)
            made = [method(picture, picture, size, removed, True) for picture in x]
            return tuple(torch.stack(parts) for parts in zip(*made, strict=True))

        bound = {"rtol": 0, "atol": 1e-4 * np.abs(case["out_x"]).max()}
        for rows, sizes, _ in (run(x), engine(trace(run, x))(x)):
            if int(case["param_fix_r"]) == 0:
                np.testing.assert_allclose(rows, case["out_x"], **bound)
                np.testing.assert_array_equal(sizes, case["out_size"])
            else:  # the port keeps a patch of each window instead of a mean; the rest is equal
                kept = wanted - 1 - removed // (window * window - 1)
                assert rows.shape == case["out_x"].shape
                mask = case["out_index_mask"]
                own = np.stack([p[1:][m] for p, m in zip(case["in_x"], mask, strict=True)])
                ours = [{tuple(r) for r in np.asarray(picture)[-kept:]} for picture in rows]
                assert all(o <= {tuple(r) for r in p} for o, p in zip(ours, own, strict=True))


def test_dymu_equals_reference(vectors: Any) -> None:
    """With as many merges as pairs are above the threshold: rows, sizes, and the unmerged grid."""
    for case in vectors("dymu"):
        if int(case["param_calibrate"]):
            continue
        metric, x, size = (torch.from_numpy(case[f"in_{n}"])[0] for n in ("metric", "x", "size"))
        r = len(x) - int(case["out_num_tokens"])
        matching = bipartite_soft_matching(metric, r, class_token=bool(case["param_class_token"]))
        rows, sizes = matching.merge(x, size)
        np.testing.assert_allclose(rows, case["out_x"][0], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(sizes, case["out_size"][0])
        tracked = (matching.remaining.unsqueeze(1) == matching.target).int()
        np.testing.assert_array_equal(tracked, case["out_pos_tracking"][0])
        unmerged = rows.index_select(0, matching.rows())
        np.testing.assert_allclose(unmerged, case["out_expanded"][0], rtol=0, atol=1e-5)


def test_token_transforming_shares_every_token_out() -> None:
    """Mass is kept; a token alike one target goes there, one between two to both; class stays."""
    keys = torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 2.0]])
    x, size = torch.arange(5.0)[:, None], torch.tensor([[5.0], [1.0], [2.0], [1.0], [1.0]])
    method = token_transforming.EncoderMethod(patches=2)
    rows, sizes, place = method(x, keys, size, 2, True)  # targets are tokens 1 and 3
    assert (rows[0], sizes[0], place.tolist()) == (0, 5, [0, 1, 1, 2, 2])
    np.testing.assert_allclose(sizes[1:], [[2.0], [3.0]], rtol=0, atol=1e-5)
    np.testing.assert_allclose(rows[1:], [[(1 + 2) / 2], [(2 + 3 + 4) / 3]], rtol=0, atol=1e-5)


def test_plans() -> None:
    """Patches left after each layer."""
    assert tome.EncoderMethod(patches=64, by=3).plan(100, 4) == (88, 76, 64, 64)
    assert tome.EncoderMethod(patches=64).plan(100, 4) == (88, 76, 64, 64)
    assert tome.EncoderMethod(r=30).plan(100, 4) == (70, 40, 20, 10)
    assert dymu.EncoderMethod(merges="10+0+5").plan(64, 4) == (54, 54, 49, 49)
    assert dymu.EncoderMethod(merges=10).plan(64, 2) == (54, 54)
    assert mustdrop.EncoderMethod(patches=50).plan(64, 2) == (48, 48)  # two windows of nine
    assert token_transforming.EncoderMethod(patches=30).plan(64, 6) == (64, 30, 30, 30, 30, 30)
    assert token_transforming.EncoderMethod(patches=9, layer=3).plan(64, 3) == (64, 64, 9)
    assert math.isqrt(64) // 3 == 2


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (tome.EncoderMethod(patches=64), r"^tome: got patches=64, expected less than 64 \(those"),
        (tome.EncoderMethod(patches=8, by=2), "^tome: 64 patches cannot become 8 in 2 layers, hal"),
        (tome.EncoderMethod(patches=32, by=5), "^tome: got by=5, the encoder has 4 layers"),
        (dymu.EncoderMethod(merges="1+1+1+1+1"), "^dymu: got merges for 5 layers, the encoder has"),
        (dymu.EncoderMethod(merges="33"), "^dymu: 33 of 64 patches cannot merge in layer 1, half"),
        (token_transforming.EncoderMethod(patches=64), "^token_transforming: got patches=64, expe"),
        (
            token_transforming.EncoderMethod(patches=4, layer=5),
            "^token_transforming: got layer=5, ",
        ),
        (mustdrop.EncoderMethod(patches=64), "^mustdrop: got patches=64, expected less than 64"),
        (mustdrop.EncoderMethod(patches=9), "^mustdrop: windows of 3x3 leave 32 of 64 patches or"),
    ],
)
def test_impossible_plans(method: Any, message: str) -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=message):
        method.plan(64, 4)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (tome.EncoderMethod, {}, "^give patches "),
        (tome.EncoderMethod, {"patches": 4, "r": 4}, "^give patches "),
        (tome.EncoderMethod, {"by": 4, "r": 4}, "^give patches "),
        (tome.EncoderMethod, {"r": 0}, "^r must be at least 1, got 0$"),
        (
            dymu.EncoderMethod,
            {"merges": "4,4"},
            "^merges of dymu are numbers with '\\+' between them",
        ),
        (token_transforming.EncoderMethod, {"patches": 4, "layer": 0}, "^layer must be at least 1"),
        (mustdrop.EncoderMethod, {"patches": 0}, "^patches must be at least 1, got 0$"),
        (mustdrop.EncoderMethod, {"patches": 4, "window": 1}, "^window is the side of a window"),
    ],
)
def test_wrong_options(make: Any, options: dict[str, Any], message: str) -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=message):
        make(**options)
