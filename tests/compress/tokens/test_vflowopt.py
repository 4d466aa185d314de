"""VFlowOpt's recycling and importance against their references, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress.tokens.vflowopt import Method, cells_of, recycle
from edgevlm.errors import PlanError
from edgevlm.graphs.selection import entropy
from edgevlm.graphs.signals import global_rows
from edgevlm.graphs.visual_shape import VisualShape


def test_by_hand() -> None:
    """Two cells of 1 x 2, K = 3: token 1 stays; 0 is alone in its cell, 2 and 3 become a mean."""
    features = torch.tensor([[[1.0], [2.0], [3.0], [7.0]]])
    importance = torch.tensor([[0.1, 0.6, 0.05, 0.15]])
    kept, positions = Method(tokens=3, cell=2)(
        features, global_attention=importance, shape=VisualShape(((1, 4),), 1)
    )
    assert positions.tolist() == [[0, 1, 3]]
    torch.testing.assert_close(kept, torch.tensor([[[1.0], [2.0], [6.0]]]))


def test_cells() -> None:
    """Sides need not be integers; each grid has cells of its own."""
    shape = VisualShape(((2, 3), (1, 2)), 8)
    assert cells_of(shape, 1.5) == [0, 0, 1, 0, 0, 1, 2, 2]
    assert cells_of(shape, 9) == [0] * 6 + [1] * 2


def test_recycling_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """The same rows at the original's number of tokens; ONNX Runtime too."""
    for case in vectors("vflowopt_recycle"):
        local = int(case["param_local_h"]), int(case["param_local_w"])
        cells = cells_of(VisualShape(((27, 27), local), 32), float(case["param_grid_a"]))
        kept = len(case["out_tokens"])

        def run(
            features: Tensor, importance: Tensor, cells: list[int] = cells, kept: int = kept
        ) -> tuple[Tensor, Tensor]:
            weights, positions = recycle(importance, cells, kept)
            return weights @ features, positions

        given = [torch.from_numpy(case[f"in_{name}"]) for name in ("features", "importance")]
        bound = {"rtol": 0, "atol": 1e-4 * np.abs(case["out_tokens"]).max()}
        for tokens, positions in (run(*given), engine(trace(run, *given))(*given)):
            np.testing.assert_array_equal(positions, np.flatnonzero(case["out_keep_mask"]))
            np.testing.assert_allclose(tokens, case["out_tokens"], **bound)


def test_importance_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """Entropy, global tokens and their sum, of attention and 8-bit pixels; ONNX Runtime too."""
    weights = []
    for case in vectors("vflowopt_importance"):
        t, alpha = float(case["param_t"]), float(case["param_alpha_v"])
        weights.append(alpha)

        def run(
            attention: Tensor, pixels: Tensor, t: float = t, alpha: float = alpha
        ) -> tuple[Tensor, Tensor]:
            bits = entropy(pixels.flatten(2))
            return bits, global_rows(attention.mean(1), t)[0] + alpha * bits.softmax(0)

        given = [
            torch.from_numpy(case[f"in_{name}"]).float() for name in ("attention", "patches_rgb")
        ]
        for bits, importance in (run(*given), engine(trace(run, *given))(*given)):
            np.testing.assert_allclose(bits, case["out_entropy"], rtol=0, atol=1e-4)
            expected = case["out_importance"]
            np.testing.assert_allclose(importance, expected, rtol=0, atol=1e-4 * expected.max())
    assert max(weights) > 0


def test_who_is_global() -> None:
    """More than t times the mean; where none is, who receives most; never a class token."""
    weights = torch.tensor(
        [[0.1, 0.6, 0.3], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]]
    )  # receive .2 .47 .33
    torch.testing.assert_close(global_rows(weights[None], 0.0)[0], weights.mean(0))
    torch.testing.assert_close(global_rows(weights[None], 0.9)[0], weights[1:].mean(0))
    torch.testing.assert_close(global_rows(weights[None], 39.3)[0], weights[1])
    torch.testing.assert_close(global_rows(weights[None], 0.0, True)[0], weights[1:].mean(0))


def test_alpha_adds_the_entropy() -> None:
    """The entropy is asked for only where it counts."""
    assert Method(tokens=1).signals == ("global_attention",)
    method = Method(tokens=1, alpha=0.5)
    assert method.signals == ("patch_entropy", "global_attention")
    attention, bits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]), torch.tensor([[0.1, 0.2, 0.1, 0.6]])
    _, positions = method(
        torch.zeros(1, 4, 2),
        global_attention=attention,
        patch_entropy=bits,  # .45 .4 .25 .4
    )
    assert positions.tolist() == [[0]]
    _, positions = Method(tokens=1, alpha=1)(
        torch.zeros(1, 4, 2),
        global_attention=attention,
        patch_entropy=bits,  # .5 .5 .3 .7
    )
    assert positions.tolist() == [[3]]


def test_only_tiles_are_recycled() -> None:
    """A single view and a clip keep rows as they are, unless a cell is given."""
    features, attention = torch.arange(18.0).reshape(1, 18, 1), torch.linspace(0, 1, 18)[None]
    tiled = VisualShape(((3, 3), (3, 3)), 1, (1, 1), "first")
    clip = VisualShape(((3, 3), (3, 3)), 1)
    kept, positions = Method(tokens=4)(features, global_attention=attention, shape=clip)
    assert positions.tolist() == [[14, 15, 16, 17]]
    assert kept.flatten().tolist() == [14, 15, 16, 17]
    for method, shape in ((Method(tokens=4), tiled), (Method(tokens=4, cell=17.4), clip)):
        kept, positions = method(features, global_attention=attention, shape=shape)
        assert positions.tolist() == [
            [8, 15, 16, 17]
        ]  # 8 stands for the first grid, 15 for the rest
        assert kept[0, 0] == pytest.approx(float((features[0, :9, 0] ** 2).sum() / 36))


def test_a_still_importance_gives_k_rows() -> None:
    """Equal importance everywhere, and cells that end up empty: still K distinct positions."""
    for kept in (4, 5, 40, 63):
        weights, positions = recycle(torch.zeros(64), cells_of(VisualShape(((8, 8),), 1), 4), kept)
        assert len(set(positions.tolist())) == kept
        torch.testing.assert_close(weights.sum(1), torch.ones(kept))


def test_refusals() -> None:
    """More cells than tokens, and a cell below one token."""
    with pytest.raises(PlanError, match=r"^vflowopt: cell=2 makes 16 cells and 9 tokens are kept"):
        Method(tokens=9, cell=2).plan(VisualShape(((8, 8),), 16))
    for name, (value, reason) in {
        "cell": (0.5, r"^cell is the side of a cell in tokens, at least 1"),
        "t": (-1.0, r"^t is a multiple of the mean attention, 0 or more, got -1.0"),
        "alpha": (1.5, r"^alpha is the weight of the entropy, -1 to 1, got 1.5"),
    }.items():
        with pytest.raises(ValueError, match=reason):
            Method(tokens=9, **{name: value})


def test_a_bundle_has_the_entropy(preset: Any, lowered_once: Any, tmp_path: Any) -> None:
    """As the exporter writes it, which drops additions of tiny constants."""
    pytest.importorskip("onnxscript")
    from edgevlm.recipe import Recipe

    recipe = Recipe(
        model=str(preset("tiny-llava-onevision")),
        tokens=20,
        methods=("vflowopt:t=1.2,alpha=-0.5",),  # type: ignore[arg-type]
    )
    assert lowered_once(recipe, tmp_path / "entropy.edgevlm").verification.ok
