"""Keep the dominant tokens of a grid and merge the rest into a few contextual ones.

 1. Dominant tokens: those with the largest attention.
 2. Targets: every s-th of the others in raster order, s = floor(others / contextual).
 3. Each token that is neither merges into the target whose key has the largest cosine with its own.
 4. A contextual token is its target plus the mean of the tokens that merge into it, so it is about
    twice as long as a token. The original does this, and models are measured with it.

Merging is Y = X[positions] + W X, where W [k, n] has the weight of each token in each kept token;
it is zero for dominant tokens.

Source: VisionZip (arXiv 2412.04467), section 3, dvlab-research/VisionZip@3151f6d
visionzip/clip_encoder.py; VisionDrop (arXiv 2506.22283) does the same in the language model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.graphs.selection import (
    ROUNDING,
    ascending,
    gather_tokens,
    marked,
    marked_indices,
    unit_rows,
)


def dominant_and_contextual(
    features: Tensor, attention: Tensor, keys: Tensor, dominant: int, contextual: int
) -> tuple[Tensor, Tensor]:
    """One grid: features [1, n, C], attention [n], keys [n, D] to `dominant` + `contextual` tokens.

    Returns:
        Tokens f32 [1, k, C] and their positions i64 [k], ascending.
    """
    total = features.shape[1]
    others = torch.ones(total, dtype=torch.bool)
    chosen = attention.topk(dominant).indices if dominant else torch.arange(0)
    if not contextual:
        positions = ascending(chosen)
        return gather_tokens(features, positions), positions
    if dominant:
        others = ~marked(chosen, total)
    rest = total - dominant
    targets = marked_indices(others, rest)[:: rest // contextual][:contextual]
    positions = ascending(torch.cat([chosen, targets]))
    cosine = unit_rows(keys) @ unit_rows(keys.index_select(0, targets)).transpose(0, 1)
    nearest = cosine.clamp(max=1.0 - ROUNDING).argmax(1)  # [n], index among the targets
    # A kept token merges into no other.
    target = torch.where(marked(positions, total), -1, targets.index_select(0, nearest))
    members = (positions.unsqueeze(1) == target).float()  # [k, n]
    weights = members / members.sum(1, keepdim=True).clamp(min=1.0)
    return gather_tokens(features, positions) + weights @ features, positions
