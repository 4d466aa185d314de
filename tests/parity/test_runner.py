"""Choices and merges of tokens that hang on rounding, told from wrong ones."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.parity.runner import _at_places, _hangs_on_rounding  # noqa: E402


class Largest(torch.nn.Module):
    """Keeps the 8 largest of 32 scores."""

    def forward(self, scores):
        kept = scores[0].topk(8).indices.topk(8, largest=False).values
        return scores[:, kept], kept[None]


def kept(scores):
    return Largest()(torch.from_numpy(scores))[1].numpy()


@pytest.fixture
def scores():
    return np.random.default_rng(1).permutation(32).astype(np.float32)[None] + 1


def test_a_clear_choice_does_not(scores):
    chosen = kept(scores)
    for mine in (chosen, chosen + 1):
        assert not _hangs_on_rounding(Largest(), {"scores": scores}, mine, chosen)


def test_among_equals_it_does_and_a_choice_far_from_all_is_wrong(scores):
    near = np.float32(1.0) + scores * np.float32(1e-9)  # all the same but for the last bits
    chosen = kept(near)
    other = np.setdiff1d(np.arange(32), chosen)[None, :8]
    half = np.concatenate([chosen[:, :4], other[:, :4]], 1)
    assert _hangs_on_rounding(Largest(), {"scores": near}, half, chosen)
    assert not _hangs_on_rounding(Largest(), {"scores": near}, other, chosen)


def test_tokens_that_are_numbered_otherwise_are_the_same_and_wrong_ones_are_not():
    """Six places: 0 and 3 are one token, 1 is one, 2, 4 and 5 are one."""
    names = ("hidden", "size", "origin")
    hidden, size = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[2.0], [1.0], [3.0]]])
    theirs = [hidden, size, torch.tensor([[0, 1, 2, 0, 2, 2]])]
    order = torch.tensor([2, 0, 1])
    mine = [hidden[:, order], size[:, order], torch.tensor([[1, 2, 0, 1, 0, 0]])]
    for a, b in zip(*_at_places(names, mine, theirs), strict=True):
        assert torch.equal(a, b)
    for index in (0, 1):
        wrong = [x.clone() for x in mine]
        wrong[index][0, 1] += 1
        pairs = list(zip(*_at_places(names, wrong, theirs), strict=True))
        assert not torch.equal(*pairs[index])
    # Place 4 alone, where rounding merged it with no other: sizes are those of 0, 1 and 3.
    other = [
        torch.tensor([[[1.0], [2.0], [3.5], [2.5]]]),
        torch.tensor([[[2.0], [1.0], [2.0], [1.0]]]),
    ]
    (mine_hidden, mine_size), (hidden, size) = _at_places(
        names, [*other, torch.tensor([[0, 1, 2, 0, 3, 2]])], theirs
    )
    assert mine_hidden.flatten().tolist() == [1.0, 2.0, 3.5, 1.0, 2.5, 3.5]
    assert hidden.flatten().tolist() == [1.0, 2.0, 3.0, 1.0, 3.0, 3.0]
    assert mine_size.flatten().tolist() == size.flatten().tolist() == [2.0, 1.0, 2.0]
