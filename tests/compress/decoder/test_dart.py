"""DART against its reference and by hand, and its plans."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgevlm.compress.decoder.dart import Method, take_dissimilar, word_pivots
from edgevlm.errors import PlanError
from edgevlm.graphs.pruning import Look, PrunedDecoderBlock, Pruning
from edgevlm.graphs.selection import marked, unit_rows


class FixedKeys(Look):
    """A layer whose keys are those of a case."""

    fixed: Tensor

    def keys(self) -> Tensor:
        return self.fixed


def look_at(states: Tensor, keys: Tensor, visual: range) -> FixedKeys:
    """States [1, L, C] that no norm changes, and keys [heads, L, D]."""
    none: Any = None
    last = torch.tensor([states.shape[1] - 1])
    rows, norm = torch.tensor(visual), nn.Identity()
    look = FixedKeys(none, states, none, none, rows, last, final_norm=norm)
    FixedKeys.fixed = keys
    return look


def test_by_hand() -> None:
    """One visual pivot, token 1 (norm 4), and one word, row 5 (norm 3); each takes a token.

    Rows 0 to 3 are visual, 4 to 6 words, 7 fills up the call. From 10 degrees tokens 0, 2, 3 are
    10, 110 and 40 away: token 2. From 60 degrees, of the rest, 60 and 10 away: token 0.
    """
    degrees = torch.deg2rad(torch.tensor([0.0, 10, 120, 50, 5, 60, 7, 300]))
    states = torch.stack([degrees.cos(), degrees.sin()], 1)[None]
    keys = torch.tensor([[1.0, 0], [-4, 0], [0, 1], [1, 1], [1, -1], [0, 3], [0, 0], [9, 9]])[None]
    look = look_at(states, keys, range(4))
    look = FixedKeys(
        look.layer, states, look.cos, look.sin, look.visual, torch.tensor([6]),
        final_norm=look.final_norm,
    )  # fmt: skip
    method = Method(tokens=3, image_pivots=1, text_pivots=1)
    assert method(look, states, 3)[1].tolist() == [0, 1, 2]
    assert method(look, states, 2)[1].tolist() == [1, 2]  # the first pivot takes one more
    assert method(look, states, 1)[1].tolist() == [1]


def test_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """Same pivots by norm; with the original's order of pivots the same tokens, in ONNX too."""
    for case in vectors("dart_lightcompress"):
        start, total = (
            int(case["param_vision_token_start_index"]),
            int(case["param_vision_token_length"]),
        )
        rows = unit_rows(torch.from_numpy(case["in_last_layer_state"][0]))
        order = torch.from_numpy(case["out_pivot_processing_order"])
        cosine = rows[order] @ rows[start : start + total].T
        taken = marked(torch.from_numpy(case["out_image_pivots"]) - start, total)
        counts = [int(case["out_tokens_per_pivot"])] * len(order)
        found = take_dissimilar(cosine, taken, counts)
        expected = case["out_retained_sorted"] - start
        assert found.nonzero().flatten().tolist() == expected.tolist()
        program = trace(partial(take_dissimilar, counts=counts), cosine, taken)
        (in_onnx,) = engine(program)(cosine, taken)
        np.testing.assert_array_equal(in_onnx, found.numpy())


def test_choice_differs_from_the_reference_by_the_order_of_pivots_alone(vectors: Any) -> None:
    """From keys and states: the original's pivots, which take their turn by row."""
    for case in vectors("dart_lightcompress"):
        start = int(case["param_vision_token_start_index"])
        visual = range(start, start + int(case["param_vision_token_length"]))
        pivots = [case["out_image_pivots"], case["out_text_pivots"]]
        states = torch.from_numpy(case["in_last_layer_state"])
        look = look_at(states, torch.from_numpy(case["in_keys"][0]), visual)
        kept, (image, text) = len(case["out_retained_sorted"]), map(len, pivots)
        chosen = Method(tokens=kept, image_pivots=image, text_pivots=text)(look, states, kept)[1]
        unit = unit_rows(states[0])
        cosine = unit[np.sort(np.concatenate(pivots))] @ unit[list(visual)].T
        budgets = [int(case["out_tokens_per_pivot"])] * (image + text)
        taken = marked(torch.from_numpy(pivots[0]) - start, len(visual))
        expected = take_dissimilar(cosine, taken, budgets)
        assert chosen.tolist() == expected.nonzero().flatten().tolist()


def test_plans() -> None:
    """Visual tokens that each of eight layers sees; the original's rate is 0.2222."""
    assert Method(tokens=98).plan(196, 8) == (196, 196, *[98] * 6)
    assert Method().plan(576, 3) == (576, 576, 4 + 8 * 15)
    assert Method().plan(3, 3) == (3, 3, 3)
    with pytest.raises(PlanError, match=r"^dart: got 65 tokens from layer 2 on, expected 0 to 64"):
        Method(tokens=65).plan(64, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_pivots": 0}, "^image_pivots is a number of pivots, at least 1, got 0"),
        ({"text_pivots": -1}, "^text_pivots is a number of pivots, at least 0, got -1"),
    ],
)
def test_wrong_pivots(options: dict[str, int], message: str) -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=message):
        Method(**options)


def test_the_block_that_chooses_has_the_last_norm() -> None:
    """Layer 1 chooses for layer 2; a block with the last layer has the norm anyway."""
    pruning = Pruning(Method(tokens=4), (8, 8, 4, 4), 8, (1.0,))
    assert pruning.norming == (1,)
    norm, layer = nn.LayerNorm(2), nn.Identity()
    held = {
        span: PrunedDecoderBlock([layer] * (span[1] - span[0]), None, span[0], pruning, norm)
        for span in ((0, 1), (1, 2), (2, 3))
    }
    assert [b.final_norm is norm for b in held.values()] == [False, True, False]
    assert PrunedDecoderBlock([layer] * 4, norm, 0, pruning, norm).final_norm is None


def test_fewer_words_than_text_pivots() -> None:
    """The word with the largest norm stands for those that lack: no other row is a pivot."""
    norms = torch.tensor([9.0, 8.0, 1.0, 3.0, 2.0, 7.0])
    words = torch.tensor([False, False, True, True, True, False])
    assert word_pivots(norms, words, 2).tolist() == [3, 4]
    assert sorted(set(word_pivots(norms, words, 4).tolist())) == [2, 3, 4]
    assert len(word_pivots(norms, words, 500)) == len(norms)
