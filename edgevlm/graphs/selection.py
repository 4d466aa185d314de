"""Selection of tokens without sort: ranks, top-k that breaks ties alike everywhere, masks, gather.

And entropy, which counts without scatter.

Each function is made of operators that every target has: top-k, gather, compare, running sum,
matmul. Shapes are constants. `sort`, `scatter` and boolean indexing are missing or wrong on at
least one target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The smallest norm to divide by: a vector of zeros stays zero and never becomes NaN.
SMALLEST_NORM = 1e-12
# Cosines closer to 1 than this are 1. A float32 dot product of unit vectors is off by 1e-7 to 4e-6
# (C = 64 to 4096), and not by the same amount in each engine: copies of a token (a still video)
# would be ranked by rounding. Made equal, they tie and the lowest index wins everywhere.
ROUNDING = 4e-6
# VFlowOpt's weight of each colour in a grey value; and less than any share of a patch's pixels.
GREY, LEAST_SHARE = 0.3333, 1e-6


def keep_all(features: Tensor) -> tuple[Tensor, Tensor]:
    """Zero compression: the same tensor [1, N, C], and positions 0 to N - 1 as i32 [1, N]."""
    return features, torch.arange(features.shape[1], dtype=torch.int32).unsqueeze(0)


def gather_tokens(features: Tensor, indices: Tensor) -> Tensor:
    """Tokens `indices` [K] of features [1, N, C], as [1, K, C]."""
    return features.index_select(1, indices)


def select_tokens(features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """What a method that only selects returns: tokens [1, K, C] and positions i32 [1, K].

    Args:
        features: f32 [1, N, C].
        positions: i64 [K], ascending.
    """
    return gather_tokens(features, positions), positions.to(torch.int32).unsqueeze(0)


def ascending(indices: Tensor) -> Tensor:
    """Distinct integers [..., K] in ascending order, by top-k alone."""
    return indices.topk(indices.shape[-1], dim=-1, largest=False).values


def in_raster_order(positions: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Distinct positions i64 [K] in ascending order, and each of `values` [K, …] in that order."""
    order = positions.topk(positions.shape[0], largest=False).indices
    return tuple(tensor.index_select(0, order) for tensor in (positions, *values))


def ranks(scores: Tensor) -> Tensor:
    """Rank of each score [..., N] in descending order, i64 [..., N]; 0 is the largest.

    Equal scores keep their order. Top-k breaks ties differently in PyTorch and in each engine, so
    a choice that must not flip counts instead. O(N^2) compares.
    """
    number = torch.arange(scores.shape[-1])
    other, own = scores.unsqueeze(-2), scores.unsqueeze(-1)
    earlier = number < number.unsqueeze(-1)  # [N, N], column before row
    return ((other > own) | ((other == own) & earlier)).sum(-1)


def unit_rows(features: Tensor) -> Tensor:
    """Vectors f32 [..., N, C] divided by their length."""
    return features / features.square().sum(-1, keepdim=True).sqrt().clamp(min=SMALLEST_NORM)


def marked(indices: Tensor, total: int) -> Tensor:
    """Which of `total` tokens are among indices [K]: bool [N]. O(N K) compares."""
    return (torch.arange(total).unsqueeze(1) == indices).sum(1) > 0


def marked_indices(mask: Tensor, count: int) -> Tensor:
    """Indices i64 [count] of a mask bool [N] that marks `count` tokens, ascending."""
    total = mask.shape[0]
    # An unmarked token gets an index past the end.
    return torch.where(mask, torch.arange(total), total).topk(count, largest=False).values


def descending(scores: Tensor) -> Tensor:
    """Indices i64 [N] of scores [N], the largest first; equal scores keep their order."""
    return ranks(scores).topk(scores.shape[0], largest=False).indices


def largest(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` largest along the last axis of scores [..., N]: bool; of equals the first.

    Unlike top-k the choice among equals is the same in each engine. O(N) beside the top-k.
    """
    least = scores.topk(count, dim=-1).values[..., -1:]
    above, equal = scores > least, scores == least
    free = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.to(torch.int64).cumsum(-1) <= free))


def largest_indices(scores: Tensor, count: int) -> Tensor:
    """Indices i64 [count], ascending, of the largest scores [n]; of equals the first."""
    return marked_indices(largest(scores, count), count)


def entropy(pixels: Tensor) -> Tensor:
    """Entropy of the grey values of patches, in bits.

    The 256 bins are products of the two hexadecimal digits, so that no bin is counted by itself and
    nothing is scattered.

    Args:
        pixels: Red, green and blue of each pixel, integers from 0 to 255, f32 [n, 3, p].

    Returns:
        f32 [n].
    """
    grey = (pixels * GREY).sum(1).round()  # [n, p]
    high = (grey / 16.0).floor()
    digit = torch.arange(16.0)
    rows = (high.unsqueeze(1) == digit.unsqueeze(1)).float()  # [n, 16, p]
    columns = ((grey - 16.0 * high).unsqueeze(2) == digit).float()  # [n, p, 16]
    share = (rows @ columns).flatten(1) / pixels.shape[2]  # [n, 256]
    # An empty bin adds 0 times a finite logarithm. (`share + 1e-10` is `share` in ONNX.)
    return -(share * share.clamp(min=LEAST_SHARE).log()).sum(1) / math.log(2.0)


def rows_of(matrices: Sequence[Tensor], ids: NDArray[Any]) -> Tensor:
    """Rows of matrices [n, C], f32 [..., C] for ids [...].

    Outside graphs: rows are read when they are asked for, as the whole may be larger than memory.
    """
    rows, first = np.empty((*ids.shape, matrices[0].shape[1]), np.float32), 0
    for matrix in matrices:
        inside = (ids >= first) & (ids < first + len(matrix))
        if inside.any():
            rows[inside] = matrix[ids[inside] - first].float().numpy()
        first += len(matrix)
    return torch.from_numpy(rows)
