"""k-medoids of batches of tokens, with a fixed number of rounds.

 1. The first medoid is the token of the largest length, each further one the token that is furthest
    from all before it (KKZ, Katsavounidis, Kuo and Zhang 1994).
 2. Each token belongs to the nearest medoid; the medoid of a cluster becomes its token with the
    smallest sum of distances to the others. So often as there are rounds.

Once no medoid changes, further rounds change nothing: the rounds of an original that stops then are
met by as many here. Sources: CenterCLIP (arXiv 2205.00823), section 3.3, mzhaoshuai/CenterCLIP
modules/cluster/fast_kmeans.py. Limits: O(M^2 (D + K rounds)) for M tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.graphs.selection import ascending

FAR = 1e30  # beyond any sum of distances


def distances(x: Tensor) -> Tensor:
    """Euclidean distances of tokens f32 [S, M, D] of the same batch: [S, M, M].

    A token is at -1 from itself, so that it is nearest to itself also beside a copy.
    """
    squares = x.square().sum(-1)
    products = x @ x.transpose(1, 2)
    products = products + products.transpose(1, 2)  # alike both ways: a cluster of two is a tie
    squared = squares.unsqueeze(2) + squares.unsqueeze(1) - products
    number = torch.arange(x.shape[1])
    itself = number.unsqueeze(1) == number
    return torch.where(itself, -1.0, squared.clamp(min=0.0).sqrt())


def medoids(x: Tensor, count: int, rounds: int) -> tuple[Tensor, Tensor]:
    """The medoids of each batch, and the cluster of each token.

    Args:
        x: Tokens f32 [S, M, D].
        count: K, medoids of a batch.
        rounds: How often tokens are assigned.

    Returns:
        Indices i64 [S, K], ascending, and for each token the number of its medoid in that order,
        i64 [S, M].
    """
    apart = distances(x)
    chosen = _furthest(x, apart, count)
    for _ in range(rounds - 1):
        chosen = _central(apart, _nearest(apart, chosen), count)
    found = ascending(chosen)
    return found, _nearest(apart, found)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Tokens `indices` i64 [S, K] of each batch f32 [S, M, D]: [S, K, D]."""
    batches, tokens, width = x.shape
    flat = (indices + torch.arange(batches).unsqueeze(1) * tokens).reshape(-1)
    return x.reshape(-1, width).index_select(0, flat).reshape(batches, -1, width)


def _furthest(x: Tensor, apart: Tensor, count: int) -> Tensor:
    """The first medoids i64 [S, K]."""
    chosen = [x.square().sum(-1).argmax(-1, keepdim=True)]
    nearest = _rows(apart, chosen[0])[:, 0]
    for _ in range(count - 1):
        chosen.append(nearest.argmax(-1, keepdim=True))
        nearest = torch.minimum(nearest, _rows(apart, chosen[-1])[:, 0])
    return torch.cat(chosen, dim=1)


def _nearest(apart: Tensor, chosen: Tensor) -> Tensor:
    """The number of the nearest of the medoids i64 [S, K] for each token: i64 [S, M]."""
    return _rows(apart, chosen).argmin(1)


def _central(apart: Tensor, cluster: Tensor, count: int) -> Tensor:
    """The token of each cluster with the smallest sum of distances to the others: i64 [S, K]."""
    member = cluster.unsqueeze(1) == torch.arange(count).unsqueeze(1)  # [S, K, M]
    sums = member.float() @ apart
    return torch.where(member, sums, FAR).argmin(-1)


def _rows(apart: Tensor, indices: Tensor) -> Tensor:
    """Rows of distances: of tokens i64 [S, K], [S, K, M]."""
    return take(apart, indices)
