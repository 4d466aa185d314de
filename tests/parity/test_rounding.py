"""Choices and merges of tokens that hang on rounding, told from wrong ones."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.parity.rounding import by_patch, float16_psnr_db, hangs_on_rounding  # noqa: E402


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
    expected = kept(scores)
    for actual in (expected, expected + 1):
        assert not hangs_on_rounding(Largest(), [scores], actual, expected)


def test_among_equals_it_does_and_a_choice_far_from_all_is_wrong(scores):
    near = np.float32(1.0) + scores * np.float32(1e-9)  # all the same but for the last bits
    expected = kept(near)
    other = np.setdiff1d(np.arange(32), expected)[None, :8]
    half = np.concatenate([expected[:, :4], other[:, :4]], 1)
    assert hangs_on_rounding(Largest(), [near], half, expected)
    assert not hangs_on_rounding(Largest(), [near], other, expected)


def side(hidden, size, origin):
    return {
        "hidden": np.array([[[x] for x in hidden]]),
        "size": np.array([[[x] for x in size]]),
        "origin": np.array([origin]),
    }


# Six patches: 0 and 3 are one token, 1 is one, 2, 4 and 5 are one.
EXPECTED = side([1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [0, 1, 2, 0, 2, 2])
RENUMBERED = side([3.0, 1.0, 2.0], [3.0, 2.0, 1.0], [1, 2, 0, 1, 0, 0])


def test_tokens_that_are_numbered_otherwise_are_the_same():
    actual, expected = by_patch(RENUMBERED, EXPECTED)
    assert list(actual) == list(expected) == ["hidden", "size"]
    for name in actual:
        np.testing.assert_array_equal(actual[name], expected[name])
    assert expected["hidden"].flatten().tolist() == [1.0, 2.0, 3.0, 1.0, 3.0, 3.0]
    assert expected["size"].flatten().tolist() == [2.0, 1.0, 3.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize("name", ["hidden", "size"])
def test_a_wrong_number_stays_wrong(name):
    wrong = RENUMBERED | {name: RENUMBERED[name] + [[[0], [1], [0]]]}
    actual, expected = by_patch(wrong, EXPECTED)
    assert not np.array_equal(actual[name], expected[name])


def test_sizes_are_compared_where_both_sides_merged_the_same_patches():
    """Patch 4 is alone on one side: sizes are those of patches 0, 1 and 3."""
    other = side([1.0, 2.0, 3.5, 2.5], [2.0, 1.0, 2.0, 1.0], [0, 1, 2, 0, 3, 2])
    actual, expected = by_patch(other, EXPECTED)
    assert actual["hidden"].flatten().tolist() == [1.0, 2.0, 3.5, 1.0, 2.5, 3.5]
    assert expected["hidden"].flatten().tolist() == [1.0, 2.0, 3.0, 1.0, 3.0, 3.0]
    assert actual["size"].flatten().tolist() == expected["size"].flatten().tolist() == [2, 1, 2]


def test_outputs_without_an_origin_stay_as_they_are():
    outputs = {"hidden": np.ones((1, 2, 1)), "cls_attention": np.zeros((1, 2))}
    assert by_patch(outputs, outputs) == (outputs, outputs)


def test_float16_psnr_is_that_of_rounding_alone():
    """A product of 64 terms in float16, whose numbers have 11 bits, is near and not equal."""
    linear = torch.nn.Linear(64, 64, bias=False).requires_grad_(False)
    x = np.random.default_rng(0).standard_normal((1, 8, 64)).astype(np.float32)
    expected = {"hidden": linear(torch.from_numpy(x)).numpy()}
    assert 55 < float16_psnr_db(linear, [x], expected) < 90
    assert float16_psnr_db(linear, [x], {"hidden": expected["hidden"] / 2}) < 20


class Merged(torch.nn.Module):
    """A product that says of each of 6 patches which of 3 tokens it is part of."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(64, 64, bias=False).requires_grad_(False)

    def forward(self, x):
        return self.linear(x), torch.from_numpy(EXPECTED["origin"]).int()


def test_float16_psnr_is_by_patch_where_tokens_merge():
    x = np.random.default_rng(0).standard_normal((1, 3, 64)).astype(np.float32)
    module = Merged()
    hidden, origin = (tensor.numpy() for tensor in module(torch.from_numpy(x)))
    assert 55 < float16_psnr_db(module, [x], {"hidden": hidden, "origin": origin}) < 90
    order, renumbered = [2, 0, 1], RENUMBERED["origin"]
    other = {"hidden": hidden[:, order], "origin": renumbered}
    assert 55 < float16_psnr_db(module, [x], other) < 90
