"""VisionZip: dominant tokens, targets and groups are those of the model, each view by itself.

As dvlab-research/VisionZip drives CLIP: attention, keys and features of layer -2, before the
projector. Here rows are added up after the projector, which the last assertion shows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

LAYER, DOMINANT, CONTEXTUAL = -2, 13, 3


def zipped(attention: Tensor, keys: Tensor) -> tuple[list[int], Tensor]:
    """Positions and W [k, N] of one view: a token is its own, a target has the mean of others too.

    Args:
        attention: Of the class token, sum of heads, f32 [N].
        keys: Mean of heads, f32 [N, D].
    """
    picked = attention.topk(DOMINANT).indices.tolist()
    rest = [i for i in range(len(attention)) if i not in picked]
    targets = rest[:: len(rest) // CONTEXTUAL][:CONTEXTUAL]
    unit = torch.nn.functional.normalize(keys, dim=-1)
    groups: dict[int, list[int]] = {target: [] for target in targets}
    for token in rest:
        if token not in targets:
            nearest = (unit[targets] @ unit[token]).argmax()
            groups[targets[int(nearest)]].append(token)
    kept = sorted([*picked, *targets])
    weights = torch.zeros(len(kept), len(attention))
    for row, token in enumerate(kept):
        others = groups.get(token, [])
        weights[row, others] = 1 / max(1, len(others))
        weights[row, token] = 1.0
    return kept, weights


@pytest.mark.parametrize(("tiles", "count"), [((1, 1), 1), ((2, 2), 5)])
@torch.no_grad()
def test_the_model_keeps_and_groups_the_same(
    llava_next: Any, views: Any, tiles: tuple[int, int], count: int
) -> None:
    """13 dominant and 3 contextual tokens of each view, the class token left out."""
    pixels, project = views(count), llava_next.own.model.multi_modal_projector
    keys = llava_next.projections(pixels, LAYER)[1].unflatten(-1, (2, -1)).mean(2)[:, 1:]
    attention = llava_next.attention(pixels)[LAYER][:, :, 0, 1:].sum(1)
    marks, after, before, summed = torch.zeros_like(attention), [], [], []
    for view, features in enumerate(llava_next.states(pixels)[LAYER][:, 1:]):
        kept, weights = zipped(attention[view], keys[view])
        marks[view, kept] = 1.0
        after.append(weights @ project(features))
        before.append(project(weights @ features))
        summed.append(weights.sum(1) > 1.5)
    method = f"visionzip:contextual={CONTEXTUAL * count}"
    exported = llava_next.exported(method, tokens=(DOMINANT + CONTEXTUAL) * count, tiles=tiles)
    tokens, positions = exported.reduced(pixels)
    assert positions.tolist() == exported.packed(marks).nonzero().flatten().tolist()
    rank = marks.flatten().cumsum(0).long().reshape(marks.shape) - 1  # of a kept token, in views
    order = exported.packed(rank)[positions]
    ours, theirs, merged = (torch.cat(rows)[order] for rows in (after, before, summed))
    torch.testing.assert_close(tokens, ours, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens[~merged], theirs[~merged], rtol=1e-4, atol=1e-4)
    assert merged.any()
    assert not torch.allclose(tokens[merged], theirs[merged], rtol=1e-2)
