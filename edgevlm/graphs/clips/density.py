"""Density peaks (DPC-KNN): points that are dense, and far from denser ones, are centres.

Sources: Du, Ding and Jia 2016, doi:10.1016/j.knosys.2016.02.001, as in HoT (arXiv 2311.12028),
`cluster_dpc_knn`, and HoliTom (arXiv 2505.21334). Groups of different sizes are rows of one tensor
with a mask, so that shapes are constants.
"""

from __future__ import annotations

import torch
from torch import Tensor

FAR = 1e6  # farther than any two points
TIE = 1e-6  # what a draw of 1 adds to a density, where originals draw at random


def distances(points: Tensor) -> Tensor:
    """Euclidean distances divided by sqrt(D): f32 [G, N, N] of points [G, N, D]."""
    square = points.square().sum(-1)
    product = points @ points.transpose(1, 2)
    product = (product + product.transpose(1, 2)) / 2  # rounding must not decide between two points
    apart = square.unsqueeze(2) + square.unsqueeze(1) - 2 * product
    own = torch.arange(points.shape[1])
    apart = torch.where(own == own.unsqueeze(1), 0.0, apart.clamp(min=0.0))
    return apart.sqrt() * points.shape[2] ** -0.5


def peaks(
    apart: Tensor,
    there: Tensor,
    neighbours: int,
    noise: Tensor | None = None,
    most: Tensor | None = None,
) -> Tensor:
    """How well each point is a centre: its density times the distance to a denser one, [G, N].

    Args:
        apart: Distances f32 [G, N, N].
        there: Which points of a group there are, bool [G, N]; others get -1.
        neighbours: How many nearest points, itself among them, make the density; at most as many as
            a group has.
        noise: The originals' draw, f32 [G, N], 0 to 1. Where densities are far below 1e-6 it alone
            decides, so without it they are scaled by the group's largest, and nothing is added: of
            equals the first is denser.
        most: Of each group how many nearest points at most, at least one each, i64 [G]; HoliTom
            takes no more than the group has centres.
    """
    count = apart.shape[1]
    both = there.unsqueeze(2) & there.unsqueeze(1)
    masked = torch.where(both, apart, FAR)
    nearest = masked.topk(min(neighbours, count), dim=2, largest=False).values
    near = (nearest < FAR).float()
    if most is not None:
        near = near * (torch.arange(near.shape[2]) < most.reshape(-1, 1, 1)).float()
    mean = (nearest.square() * near).sum(2) / near.sum(2).clamp(min=1.0)
    if noise is None:
        least = torch.where(there, mean, FAR).amin(1, keepdim=True)
        density = torch.exp((least - mean).clamp(max=0.0))
        number = torch.arange(count)
        denser = mean.unsqueeze(1) < mean.unsqueeze(2)
        equal = mean.unsqueeze(1) == mean.unsqueeze(2)
        denser = (denser | (equal & (number < number.unsqueeze(1)))) & both
    else:
        density = torch.exp(-mean) + TIE * noise
        denser = (density.unsqueeze(1) > density.unsqueeze(2)) & both
    farthest = torch.where(both, apart, 0.0).amax((1, 2)).unsqueeze(1)  # [G, 1]
    to_denser = torch.minimum(torch.where(denser, apart, FAR).amin(2), farthest)
    return torch.where(there, to_denser * density, -1.0)


def taken_up(points: Tensor, apart: Tensor, centre: Tensor, rest: Tensor, beta: float) -> Tensor:
    """Points f32 [G, N, D], of which centres have taken up the rest of their clusters.

    A centre becomes `beta` times itself and 1 - `beta` times the mean of the points of which it is
    the nearest centre; one without others stays, and so do all that are no centres.

    Args:
        points: f32 [G, N, D].
        apart: Distances f32 [G, N, N].
        centre: Which are centres, bool [G, N].
        rest: Which are taken up, bool [G, N].
        beta: 0 to 1.
    """
    nearest = torch.where(centre.unsqueeze(1), apart, FAR).argmin(2)  # [G, N]
    number = torch.arange(points.shape[1]).unsqueeze(1)
    taken = (nearest.unsqueeze(1) == number) & centre.unsqueeze(2) & rest.unsqueeze(1)
    members = taken.float()  # [G, centre, other]
    count = members.sum(2, keepdim=True)
    mean = members @ points / count.clamp(min=1.0)
    return torch.where(count > 0, beta * points + (1.0 - beta) * mean, points)
