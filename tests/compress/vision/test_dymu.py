"""DyMU's merging against the reference, its plans and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.vision.dymu import (
    Method,
    batch_merges,
    best_cosines,
    even_schedule,
)
from edgevlm.errors import PlanError
from edgevlm.graphs.matching import bipartite_soft_matching


def test_equals_reference(vectors: Any) -> None:
    """With as many merges as pairs above the threshold: tokens, sizes, and the unmerged grid."""
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
        unmerged = rows.index_select(0, matching.output_index())
        np.testing.assert_allclose(unmerged, case["out_expanded"][0], rtol=0, atol=1e-5)


def test_thresholds_equal_reference(vectors: Any) -> None:
    """The similarity of the next best pair of a batch, over all its pictures."""
    for case in vectors("dymu"):
        if not int(case["param_calibrate"]):
            continue
        metric, class_token = torch.from_numpy(case["in_metric"]), bool(case["param_class_token"])
        best = [best_cosines(keys, class_token) for keys in metric]
        threshold, merges = batch_merges(best, int(case["param_r"]))
        assert threshold == pytest.approx(float(case["out_batch_threshold"]), abs=1e-5)
        assert sum(merges) == int(case["param_r"]) * len(metric)


def test_the_best_pairs_of_a_batch_merge() -> None:
    """Of four pairs three are in the first picture; then all merge; then the threshold is low."""
    best = [torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.75, -0.5, 0.1])]
    assert batch_merges(best, 2) == (pytest.approx(0.1), [3, 1])
    assert batch_merges(best, 3) == (0.0, [3, 3])
    assert batch_merges([torch.tensor([0.5, -0.5])], 1) == (0.0, [1])
    assert batch_merges(best, 0) == (pytest.approx(0.9), [0, 0])


def test_best_cosines_leave_the_class_token_out() -> None:
    """One for each token of even index; token 0 may be no token of the picture."""
    keys = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    assert best_cosines(keys, False).tolist() == pytest.approx([1.0, 0.8])
    assert best_cosines(keys, True).tolist() == pytest.approx([0.8])
    assert best_cosines(keys[:1], True).tolist() == []


def test_schedules() -> None:
    """What does not divide is in the first layers."""
    assert even_schedule(64, 50, 4) == (4, 4, 3, 3)
    for left in (0, 64, "x"):
        with pytest.raises(PlanError, match=f"^dymu: got patches={left}, expected 1 to 63"):
            even_schedule(64, left, 4)  # type: ignore[arg-type]


def test_plans() -> None:
    """Patches left after each layer."""
    assert Method(merges="10+0+5").plan(64, 4) == (54, 54, 49, 49)
    assert Method(merges=10).plan(64, 2) == (54, 54)


def test_merges_by_keys() -> None:
    """The two tokens with equal keys become their mean, weighted by their sizes."""
    x, size = torch.tensor([[0.0], [6.0], [3.0]]), torch.tensor([[1.0], [1.0], [2.0]])
    keys = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    merged, sizes, token_of = Method(merges=1)(x, keys, size, 1, False)
    assert merged.tolist() == [[0.0], [4.0]]
    assert sizes.tolist() == [[1.0], [3.0]]
    assert token_of.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merges": "1+1+1+1+1"}, "^dymu: got merges for 5 layers, the encoder has"),
        ({"merges": "33"}, "^dymu: got 33 merges in layer 1, expected at most 32 of"),
    ],
)
def test_impossible_plans(options: dict[str, Any], message: str) -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=message):
        Method(**options).plan(64, 4)


def test_wrong_options() -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=r"^merges of dymu are numbers with '\+' between them"):
        Method(merges="4,4")
