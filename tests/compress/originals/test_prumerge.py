"""PruMerge from the model on: its layer, its attention and its weights.

The original (42Shawn/LLaVA-PruMerge@097c041) hooks queries and keys of layer 23, the last of the
CLIP tower, without splitting heads; features are of the last layer but one, before the projector.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn


def original_tokens(
    features: Tensor, query: Tensor, key: Tensor, outliers: int, step: int
) -> tuple[list[int], Tensor]:
    """Indices by attention (then those at even steps), and their rows with the rest's sum last.

    Args:
        features: Of one view, the class token left out, [n, D].
        query: Of its last layer, the class token first, [1 + n, D].
        key: The same.
        outliers: Tokens that are kept for their attention.
        step: Of the tokens that PruMerge+ adds; 0 for none.
    """
    attention = (query[0] @ key.T * key.shape[-1] ** -0.5).softmax(-1)[1:]
    kept = attention.topk(outliers).indices.tolist()
    kept += [
        i for i in range(0, len(features) - 1, step or len(features)) if step and i not in kept
    ]
    unit, rows = nn.functional.normalize(key[1:], dim=-1), []
    for index in kept:
        others = [i for i in range(len(features)) if i != index]
        near = (unit[others] @ unit[index]).topk(32).indices.tolist()
        members = [others[i] for i in near]
        rows.append(features[index] + (attention[members, None] * features[members]).sum(0))
    pruned = [i for i in range(len(features)) if i not in kept]
    rows.append((attention[pruned, None] * features[pruned]).sum(0))
    return kept, torch.stack(rows)


@pytest.mark.parametrize("step", [0, 6])
def test_tokens_are_the_originals(model_of: Any, views: Any, traced: Any, step: int) -> None:
    """Without a projector, which the original has behind the merging; by the graphs too."""
    model = model_of("llava_next")
    model.own.model.multi_modal_projector = nn.Identity()
    pixels = views(1)
    query, key = (projected[0] for projected in model.projections(pixels, -1))
    features = model.states(pixels)[-2][0, 1:]
    indices, expected = original_tokens(features, query, key, 6, step)
    exported = model.exported(f"prumerge:plus={step}", tokens=len(expected))
    for tokens, positions in (exported.reduced(pixels), exported.reduced(pixels, traced)):
        place = {position: row for row, position in enumerate(positions.tolist())}
        rows = [place.pop(index) for index in indices]
        rows += place.values()
        torch.testing.assert_close(tokens[rows], expected, rtol=1e-4, atol=1e-4)


def test_each_tile_is_a_view(model_of: Any, views: Any) -> None:
    """As a batch of the original: a thumbnail and tiles, the same number of each."""
    model = model_of("llava_next")
    model.own.model.multi_modal_projector = nn.Identity()
    pixels = views(5)
    exported = model.exported("prumerge", tokens=5 * 7, tiles=(2, 2))
    tokens, positions = exported.reduced(pixels)
    view = exported.packed(torch.arange(5).repeat_interleave(49).reshape(5, 49))
    number = exported.packed(torch.arange(49).repeat(5, 1))
    queries, keys = model.projections(pixels, -1)
    states = model.states(pixels)[-2][:, 1:]
    for index in range(5):
        here = (view[positions] == index).nonzero()[:, 0]
        indices, expected = original_tokens(states[index], queries[index], keys[index], 6, 0)
        place = dict(zip(number[positions[here]].tolist(), here.tolist(), strict=True))
        rows = [place.pop(i) for i in indices]
        torch.testing.assert_close(tokens[[*rows, *place.values()]], expected, rtol=1e-4, atol=1e-4)


def test_kept_tokens_are_the_originals_behind_a_projector(llava_next: Any, views: Any) -> None:
    """The same tokens leave; the weights are applied to what the projector gives."""
    pixels = views(1)
    query, key = (projected[0] for projected in llava_next.projections(pixels, -1))
    features = llava_next.own.model.multi_modal_projector(llava_next.states(pixels)[-2][:, 1:])[0]
    indices, expected = original_tokens(features, query, key, 6, 0)
    tokens, positions = llava_next.exported("prumerge", tokens=7).reduced(pixels)
    assert set(indices) < set(positions.tolist())
    rows = [positions.tolist().index(index) for index in indices]
    torch.testing.assert_close(tokens[rows], expected[:-1], rtol=1e-4, atol=1e-4)
