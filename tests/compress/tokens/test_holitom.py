"""HoliTom before the language model against its functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.shared.changes import similarity
from edgevlm.compress.tokens.holitom import Method, still, windows
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def spans(start: torch.Tensor) -> list[list[int]]:
    """First and last frame of each window."""
    frames = start.tolist()
    return [[s, max(i for i, f in enumerate(frames) if f == s)] for s in sorted(set(frames))]


def test_windows_equal_reference(vectors: Any) -> None:
    compared = 0
    for case in vectors("holitom_segment"):
        alike = torch.from_numpy(case["in_feature_sim"]) > float(case["param_tau"])
        if int(case["param_max_window_size"]) < len(alike) + 1:
            continue  # no bound of windows here; the original's default is 1,024
        assert spans(windows(alike)) == case["out_segments"].tolist()
        compared += 1
    assert compared >= 3


def test_tokens_equal_reference(vectors: Any) -> None:
    """With the original's counts of each frame and window."""
    compared = 0
    for case in vectors("holitom_merge"):
        if case["param_no_beta"] or case["param_newline_grid"]:
            continue
        x, attention = (torch.from_numpy(case[f"in_{name}"]) for name in ("features", "attn"))
        alike = similarity(x[:-1], x[1:]) > float(case["param_tau"])
        start = windows(alike)
        assert spans(start) == case["out_segments"].tolist()
        mean, static, first = still(x, start, alike)
        assert first.sum(1)[start.unique()].tolist() == case["out_static_counts"].tolist()
        ratio = float(case["out_retain_ratio_effective"])
        moving = [int(np.ceil(int(n) * ratio)) for n in (~static).sum(1)]
        fixed = [round(int(n) * ratio) for n in first.sum(1)]
        budgets, kept = torch.tensor([*moving, *fixed, 0]), sum(moving) + sum(fixed)
        method = Method(tokens=kept, beta=float(case["param_beta"]))
        positions, merged = method.cut(x, mean, static, first, attention, budgets, kept)
        tokens = merged.flatten(0, 1)[positions]
        still_first = _in_their_order(positions, first, spans(start))
        expected = case["out_tokens"]
        assert len(tokens) == len(expected)
        np.testing.assert_allclose(
            tokens[still_first], expected, rtol=0, atol=1e-4 * np.abs(expected).max()
        )
        compared += 1
    assert compared >= 2


def _in_their_order(
    positions: torch.Tensor, first: torch.Tensor, windows_: list[list[int]]
) -> list[int]:
    """Indices of tokens in the original's order: of a window its static ones, then its frames."""
    is_static, size = first.flatten()[positions].tolist(), first.shape[1]
    frame = (positions // size).tolist()
    order = []
    for begin, end in windows_:
        inside = [i for i, f in enumerate(frame) if begin <= f <= end]
        order += [i for i in inside if is_static[i]] + [i for i in inside if not is_static[i]]
    return order


@pytest.mark.parametrize("kept", [3, 10, 20, 31])
def test_always_k_tokens_in_order(engine: Any, trace: Any, kept: int) -> None:
    """A still clip has 8 tokens, one that moves all 32; in ONNX Runtime too."""
    generator = torch.Generator().manual_seed(kept)
    frame = torch.randn(1, 8, 16, generator=generator)
    still_, moving = frame.repeat(1, 4, 1), torch.randn(1, 32, 16, generator=generator)
    half = torch.cat((still_[:, :16], moving[:, 16:]), 1)
    attention = torch.rand(1, 32, generator=generator)
    shape, method = VisualShape(((2, 4),) * 4, 16, frames=4), Method(tokens=kept)
    assert method.plan(shape) == kept

    def reduce(x: Any, scores: Any) -> Any:
        return method(x, cls_attention=scores, shape=shape)

    run = engine(trace(reduce, moving, attention))
    for clip in (still_, moving, half):
        tokens, positions = reduce(clip, attention)
        assert positions[0].tolist() == sorted(set(positions[0].tolist()))
        assert tokens.shape == (1, kept, 16)
        theirs = run(clip, attention)
        assert theirs[1][0].tolist() == positions[0].tolist()
        torch.testing.assert_close(torch.as_tensor(theirs[0]), tokens, rtol=1e-5, atol=1e-5)


def test_a_still_clip_keeps_its_first_frame() -> None:
    frame = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    shape = VisualShape(((2, 4),) * 4, 16, frames=4)
    clip, scores = frame.repeat(1, 4, 1), torch.zeros(1, 32)
    tokens, positions = Method(tokens=8)(clip, cls_attention=scores, shape=shape)
    assert positions[0].tolist() == list(range(8))
    torch.testing.assert_close(tokens, frame)
    with pytest.raises(PlanError, match=r"^holitom: works over the frames of a clip"):
        Method(tokens=4).plan(VisualShape(((2, 4),), 16))
