"""MustDrop's windows by hand and against the reference, its plans and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress.vision.mustdrop import Method, merge_windows
from edgevlm.errors import PlanError


def test_windows_by_hand() -> None:
    """4 x 4 patches, windows of 2 x 2: the last one has parallel patches and becomes its mean."""
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    x[[10, 11, 14, 15]] = torch.tensor([[1.0], [2.0], [3.0], [6.0]]) * torch.ones(3)
    tokens, sizes, token_of = merge_windows(x, 2, 1)
    assert tokens[0].tolist() == [3.0] * 3
    assert sizes[:, 0].tolist() == [4.0] + [1.0] * 12
    assert token_of.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0, 11, 12, 0, 0]
    assert torch.equal(tokens.index_select(0, token_of)[:10], x[:10])


def test_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """The same tokens at the same number of windows, by threshold or fixed; ONNX Runtime too."""
    for case in vectors("mustdrop"):
        window, wanted = int(case["param_window"]), case["out_x"].shape[1]
        x = torch.from_numpy(case["in_x"])
        method = Method(patches=wanted - 1, window=window)
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


def test_plans() -> None:
    """Patches left after each layer: two windows of nine merge."""
    assert Method(patches=50).plan(64, 2) == (48, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": 64}, "^mustdrop: got patches=64, expected less than 64"),
        ({"patches": 9}, "^mustdrop: windows of 3x3 leave 32 of 64 patches or"),
    ],
)
def test_impossible_plans(options: dict[str, Any], message: str) -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=message):
        Method(**options).plan(64, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": 0}, "^patches must be at least 1, got 0$"),
        ({"patches": 4, "window": 1}, "^window is the side of a window"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=message):
        Method(**options)
