"""Choices of tokens that hang on rounding, told from wrong ones."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.parity import _hangs_on_rounding  # noqa: E402


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
