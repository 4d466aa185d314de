"""VisionZip: dominant tokens, targets and groups are those of the model, each view by itself.

As dvlab-research/VisionZip drives CLIP: attention, keys and features of layer -2, before the
projector. Here the rows are added up after the projector, which the last assertion shows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


def zipped(
    attention: Tensor, keys: Tensor, dominant: int, contextual: int
) -> tuple[list[int], Tensor]:
    """Positions and W [k, N] of one view: a token is its own, a target has the mean of others too.

    Args:
        attention: Of the class token, sum of heads, f32 [N].
        keys: Mean of heads, f32 [N, D].
        dominant: Tokens by attention.
        contextual: Tokens by similarity.
    """
    picked = attention.topk(dominant).indices.tolist()
    rest = [i for i in range(len(attention)) if i not in picked]
    targets = rest[:: len(rest) // contextual][:contextual]
    unit = torch.nn.functional.normalize(keys, dim=-1)
    groups: dict[int, list[int]] = {target: [] for target in targets}
    for token in rest:
        if token not in targets:
            nearest = (unit[targets] @ unit[token]).argmax()
            groups[targets[int(nearest)]].append(token)
    weights = torch.zeros(dominant + contextual, len(attention))
    kept = sorted([*picked, *targets])
    for row, token in enumerate(kept):
        others = groups.get(token, [])
        weights[row, others] = 1 / max(1, len(others))
        weights[row, token] = 1.0
    return kept, weights


@pytest.mark.parametrize(("tiles", "kept"), [((1, 1), 64), ((1, 2), 192)])
@torch.no_grad()
def test_the_model_keeps_and_groups_the_same(
    subject: Any, tiles: tuple[int, int], kept: int
) -> None:
    """54 dominant and 10 contextual tokens of each view."""
    case = subject("tiny-llava-next", "visionzip", kept, tiles=tiles)
    layer, project = case.model.config.vision_feature_layer, case.model.model.multi_modal_projector
    attention_layer = case.model.model.vision_tower.encoder.layers[layer].self_attn
    keys: list[Tensor] = []
    hook = attention_layer.k_proj.register_forward_hook(lambda m, i, out: keys.append(out))
    states = case.tower()
    hook.remove()
    metric = keys[0].unflatten(-1, (attention_layer.num_heads, -1)).mean(2)[:, 1:]
    attention = states.attentions[layer][:, :, 0, 1:].sum(1)
    hidden, marks = states.hidden_states[layer][:, 1:], torch.zeros_like(attention)
    after, before, summed = [], [], []
    for view, features in enumerate(hidden):
        kept_here, weights = zipped(attention[view], metric[view], 54, 10)
        marks[view, kept_here] = 1.0
        after.append(weights @ project(features))
        before.append(project(weights @ features))
        summed.append(weights.sum(1) > 1.5)
    tokens, positions = case.exported()
    assert positions == case.packed(marks).nonzero().flatten().tolist()
    rank = marks.flatten().cumsum(0).long().reshape(marks.shape) - 1  # of a kept token, in views
    order = case.packed(rank)[positions]
    ours, theirs, merged = (torch.cat(rows)[order] for rows in (after, before, summed))
    torch.testing.assert_close(tokens, ours, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[~merged], theirs[~merged], rtol=1e-4, atol=1e-5)
    assert merged.any()
    assert not torch.allclose(tokens[merged], theirs[merged], rtol=1e-2)
