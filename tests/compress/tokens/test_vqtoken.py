"""VQToken's clustering by hand, against a plain k-means, and where clusters are empty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.tokens.vqtoken import Method, assign, representatives, start


def directions(*degrees: float) -> torch.Tensor:
    """Unit vectors f32 [n, 2]."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], 1)


def plain(features: torch.Tensor, kept: int, rounds: int) -> list[int]:
    """The definition with loops, in float64."""
    x = features.double().numpy()
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    picks = [int(np.argmax(np.linalg.norm(x, axis=1)))]
    while len(picks) < kept:
        nearest = (1 - rows @ rows[picks].T).min(1)
        nearest[picks] = -1
        picks.append(int(np.argmax(nearest)))
    centres = rows[picks]
    for turn in range(rounds):
        cluster = np.argmax(rows @ centres.T, 1)
        for c in set(cluster) if turn < rounds - 1 else ():
            mean = rows[cluster == c].sum(0)
            centres[c] = mean / np.linalg.norm(mean)
    return cluster.tolist()


def test_by_hand() -> None:
    """Two groups, about 5 and 100 degrees.

    The longest token is 2 (110 degrees), token 0 is furthest from it. The means are at about 5 and
    99 degrees: tokens 1 and 4 represent them.
    """
    features = directions(0, 6, 110, 10, 98, 90) * torch.tensor([[1, 1, 3, 1, 1, 1.0]]).T
    assert start(features, 2).tolist() == [2, 0]
    assert assign(features, 2, 1).tolist() == [1, 1, 0, 1, 0, 0]
    unit = directions(0, 6, 110, 10, 98, 90)
    assert representatives(unit, assign(unit, 2, 4), 2).tolist() == [1, 4]
    means, positions = Method(tokens=2)(features[None])
    assert positions[0, 0] == 1
    expected = torch.stack([features[[0, 1, 3]].mean(0), features[[2, 4, 5]].mean(0)])
    torch.testing.assert_close(means[0], expected)


def test_rounds_move_the_centres() -> None:
    """The token at 47 degrees changes sides once the centres have moved.

    The centres start at 90 (the longest) and 0 degrees; the means are at about 75 and 20.
    """
    features = directions(0, 20, 40, 47, 88, 90) * torch.tensor([[1, 1, 1, 1, 1, 2.0]]).T
    assert assign(features, 2, 1).tolist() == [1, 1, 1, 0, 0, 0]
    assert assign(features, 2, 2).tolist() == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("rounds", [1, 8])
def test_equals_plain_kmeans(rounds: int, vectors: Any, trace: Any, engine: Any) -> None:
    """Same clusters on recorded features; ONNX Runtime gives the same means and positions."""
    for number, case in enumerate(vectors("centerclip")):
        features, kept = torch.from_numpy(case["in_x"]), int(case["param_K"])
        cluster = assign(features[0], kept, rounds)
        assert cluster.tolist() == plain(features[0], kept, rounds)
        method = Method(tokens=kept, rounds=rounds)
        means, positions = method(features)
        for row, position in enumerate(positions[0]):
            members = features[0, cluster == cluster[position]]
            torch.testing.assert_close(means[0, row], members.mean(0), rtol=0, atol=1e-5)
        if number == 0:
            found, in_onnx = engine(trace(method, features))(features)
            np.testing.assert_array_equal(in_onnx, positions.numpy())
            np.testing.assert_allclose(found, means.numpy(), rtol=0, atol=1e-5)


def test_as_good_as_centerclip(vectors: Any) -> None:
    """Tokens are nearer to their means than to the medoids that CenterCLIP finds."""
    for case in vectors("centerclip"):
        features, kept = torch.from_numpy(case["in_x"][0]), int(case["param_K"])
        rows = torch.nn.functional.normalize(features, dim=1)
        means, _ = Method(tokens=kept)(features[None])
        ours = (rows @ torch.nn.functional.normalize(means[0], dim=1).T).amax(1).mean()
        medoids = (rows @ rows[torch.from_numpy(case["out_medoids"][0])].T).amax(1).mean()
        assert ours > medoids


def test_copies_leave_clusters_empty() -> None:
    """Two pictures, three tokens each, K = 4: both means twice, four positions."""
    features = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])[None]
    means, positions = Method(tokens=4)(features)
    assert positions.tolist() == [[0, 1, 2, 3]]
    assert torch.equal(means, features[:, :4])


def test_each_token_counts_once(features: torch.Tensor) -> None:
    """Where no cluster is empty, the means weighted by their sizes are the mean of all tokens."""
    cluster = assign(features[0], 12, 8)
    means, positions = Method(tokens=12)(features)
    sizes = (cluster[positions[0]].unsqueeze(1) == cluster).sum(1).float()
    assert sizes.sum() == 64
    torch.testing.assert_close(sizes @ means[0] / 64, features[0].mean(0))


def test_wrong_rounds() -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=r"rounds is the number of k-means rounds, .* got 0"):
        Method(tokens=4, rounds=0)
