"""What RESTORE gives back: groups, means, logarithms of sizes, middle positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.compress.shared.restore import Restored, groups, median_positions
from edgevlm.compress.tokens import divprune, strided
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe

SHAPE = VisualShape(((1, 4), (1, 4)), 2)
# Two grids of four: the first has its like in the second, where it cannot go.
FEATURES = torch.tensor([[1, 0], [2, 0.1], [0, 1], [0.1, 1], [1, 0], [3, 0], [1, 0.2], [0, 5.0]])


def test_groups_stay_in_their_grid() -> None:
    """Each token with the kept one most like it there; nobody is in two groups."""
    members = groups(FEATURES, torch.tensor([0, 2, 4]), SHAPE)
    assert members.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    assert members.sum(1).tolist() == [1.0] * 8
    alone = groups(FEATURES, torch.tensor([4, 7]), SHAPE)  # nothing kept in the first grid
    assert alone.sum(1).tolist() == [0.0] * 4 + [1.0] * 4
    assert alone.sum(0).tolist() == [3.0, 1.0]


def test_middle_positions() -> None:
    """Of an even number the earlier."""
    members = torch.zeros(6, 3)
    for group, inside in enumerate(([0, 2, 5], [1, 3], [4])):
        members[inside, group] = 1
    assert median_positions(members).tolist() == [2, 1, 4]


class _Kept(TokensMethod):
    def plan(self, shape: VisualShape) -> int:
        return 3

    def __call__(self, features: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.tensor([0, 2, 5])
        return features.index_select(1, places), places.to(torch.int32)[None]


def test_each_of_the_three_alone_and_all_together(trace: Any, engine: Any) -> None:
    """Means, logarithms and places belong to the same groups; ONNX Runtime too."""
    x = FEATURES[None]
    plain = _Kept()(x)
    means = torch.stack([x[0, :2].mean(0), x[0, 2:4].mean(0), x[0, 4:].mean(0)])
    logs = np.log([2, 2, 4])

    def run(merge: bool, calibrate: bool, median: bool) -> tuple[torch.Tensor, ...]:
        return Restored(_Kept(), merge, calibrate, median)(x, shape=SHAPE)

    tokens, places = run(True, False, False)
    np.testing.assert_allclose(tokens[0], means, rtol=0, atol=1e-6)
    assert torch.equal(places, plain[1])
    tokens, places, found = run(False, True, False)
    assert torch.equal(tokens, plain[0])
    assert torch.equal(places, plain[1])
    np.testing.assert_allclose(found[0], logs, rtol=0, atol=1e-6)
    tokens, places = run(False, False, True)
    assert places[0].tolist() == [0, 2, 5]
    assert Restored(_Kept(), True, True, True).plan(SHAPE) == 3

    all_three = Restored(_Kept(), True, True, True)

    def whole(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return all_three(x, shape=SHAPE)

    for made in (whole(x), engine(trace(whole, x))(x)):
        np.testing.assert_allclose(np.asarray(made[0])[0], means, rtol=0, atol=1e-5)
        np.testing.assert_allclose(np.asarray(made[2])[0], logs, rtol=0, atol=1e-5)


def test_rows_follow_their_middle_positions() -> None:
    """A group whose kept token comes late, but whose middle is early, comes first."""
    x = torch.tensor([[0, 1.0], [0, 1], [1, 0], [0, 1]])[None]

    class Late(_Kept):
        def __call__(self, features: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
            places = torch.tensor([2, 3])
            return features.index_select(1, places), places.to(torch.int32)[None]

    tokens, places, logs = Restored(Late(), False, True, True)(x, shape=VisualShape(((2, 2),), 2))
    assert places[0].tolist() == [1, 2]
    assert tokens[0].tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(logs[0], np.log([3, 1]), rtol=0, atol=1e-6)


def test_where_nothing_leaves_nothing_changes() -> None:
    """K = N: each token is its own group."""
    x = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0))
    for method in (strided.Method(), divprune.Method()):
        tokens, places, logs = Restored(method, True, True, True)(x)
        np.testing.assert_allclose(tokens, x, rtol=0, atol=1e-6)
        assert places[0].tolist() == list(range(16))
        assert logs.abs().max() == 0


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("tiny-smolvlm", "merge=mean,calibrate=size,positions=median"),
        ("tiny-llava-onevision", "calibrate=size,positions=original"),
        pytest.param("tiny-llava-next", "merge=mean,calibrate=size", marks=pytest.mark.slow),
    ],
)
def test_a_bundle_agrees_with_the_models_own_attention(
    preset: Any, lowered_once: Any, tmp_path: Any, family: str, options: str
) -> None:
    """The logarithms reach every layer through its mask, as in PyTorch; 32 tokens of answer."""
    pytest.importorskip("onnxscript")
    recipe = Recipe(model=str(preset(family)), tokens=12, methods=(f"divprune:{options}",))
    done = lowered_once(recipe, tmp_path / "tiny.edgevlm")
    assert done.bundle.plan.host.calibrated
    assert done.verification.ok
    assert done.verification.logits_rel_error <= 1e-3
    assert done.verification.tokens_equal == 1.0


def test_what_cannot_be_together(preset: Any) -> None:
    """A method of site `decoder` makes its own masks."""
    from edgevlm.models.find import find

    methods = ("divprune:calibrate=size", "fastv:layer=1")
    recipe = Recipe(model=str(preset("tiny-smolvlm")), tokens=16, methods=methods)
    with pytest.raises(PlanError, match=r"^fastv at site decoder makes its own masks"):
        make_plan(recipe, find(recipe.model, None))
