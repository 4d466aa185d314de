"""Cutting a stage into blocks: fewest runs, within the limit, nothing lost; and the modules."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from hypothesis import example, given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from edgevlm.graphs.blocks import DecoderBlock, HeadBlock, ReduceBlock, VisionBlock, cut, cut_rows  # noqa: E402
from edgevlm.graphs.layers import LayerNumbers  # noqa: E402

SIZES = st.lists(st.integers(0, 50), max_size=12)


def fits(sizes, limit):
    return sum(map(bool, sizes)) <= 1 or sum(sizes) <= limit


def fewest(sizes, limit):
    """Fewest runs by trying every last run; one module with weights may exceed the limit alone."""
    best = [0]
    for stop in range(1, len(sizes) + 1):
        starts = (s for s in range(stop) if fits(sizes[s:stop], limit))
        best.append(1 + min(best[s] for s in starts))
    return best[-1]


@given(SIZES, st.integers(1, 80))
def test_cut_covers_every_module_once_in_order(sizes, limit):
    runs = cut(sizes, limit)
    assert [i for start, stop in runs for i in range(start, stop)] == list(range(len(sizes)))
    assert all(start < stop for start, stop in runs)


@given(SIZES, st.integers(1, 80))
def test_cut_stays_within_the_limit_but_for_single_modules(sizes, limit):
    for start, stop in cut(sizes, limit):
        assert fits(sizes[start:stop], limit)


@given(SIZES, st.integers(1, 80))
@example([0, 2], 1)
def test_cut_makes_the_fewest_runs(sizes, limit):
    assert len(cut(sizes, limit)) == fewest(sizes, limit)


def test_cut_of_equal_modules_gives_equal_runs_and_a_rest():
    assert cut([10] * 7, 30) == [(0, 3), (3, 6), (6, 7)]


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(64, 4000))
def test_cut_rows_covers_within_the_limit_in_fewest_even_runs(rows, row_bytes, limit):
    runs = cut_rows(rows, row_bytes, limit)
    assert runs[0][0] == 0
    assert runs[-1][1] == rows
    assert all(a[1] == b[0] for a, b in pairwise(runs))
    heights = [stop - start for start, stop in runs]
    assert min(heights) > 0
    assert max(heights) * row_bytes <= limit
    assert len(set(heights[:-1])) <= 1  # all but the last share a graph
    assert len(runs) == -(-rows // (limit // row_bytes))


def test_cut_rows_when_one_row_exceeds_the_limit():
    assert cut_rows(3, 100, 64) == [(0, 1), (1, 2), (2, 3)]


def test_vision_block_is_its_modules_one_after_the_other():
    first, second = nn.Linear(4, 5), nn.Linear(5, 6)
    x = torch.randn(1, 3, 4)
    assert torch.equal(VisionBlock([first, second])(x), second(first(x)))


def test_head_block_is_a_view_of_its_rows():
    matrix, hidden = torch.randn(10, 4), torch.randn(1, 1, 4)
    block = HeadBlock(matrix, (3, 7))
    assert block.rows.data_ptr() == matrix[3].data_ptr()
    torch.testing.assert_close(block(hidden), hidden[0] @ matrix[3:7].T)


def test_decoder_block_gives_each_layer_its_own_cache_and_norms_at_the_end():
    class Layer(nn.Module):
        numbers, arrays, recurrent = LayerNumbers(), 2, False

        def step(self, x, call, state):
            more, (key, value) = 0 if call.bias is None else call.bias, state
            return x + key.sum() + value.sum() + more, key + 1, value + 2

    numbers = [torch.tensor([float(n)]) for n in (1, 10, 100, 1000)]
    rest = [torch.zeros(1)] * 4
    out, *present = DecoderBlock([Layer(), Layer()], nn.Identity())(torch.zeros(1), *rest, *numbers)
    assert out.item() == 1111
    assert [p.item() for p in present] == [2, 12, 101, 1002]
    calibrated = [*rest, torch.tensor([5.0]), *numbers]  # each layer gets the bias
    out, *_ = DecoderBlock([Layer(), Layer()], nn.Identity())(torch.zeros(1), *calibrated)
    assert out.item() == 1121


def test_decoder_block_gives_each_layer_its_own_tables():
    class Layer(nn.Module):
        arrays, recurrent = 2, False

        def __init__(self, table):
            super().__init__()
            self.numbers = LayerNumbers(table=table)

        def step(self, x, call, state):
            cos, sin = call.tables[self.numbers.table]
            return x + cos + 10 * sin + 100 * call.position + (call.bias or 0), *state

    block = DecoderBlock([Layer(2), Layer(1)], None)
    zero = torch.zeros(1)
    cos, sin, mask, position, cos_2, sin_2 = map(torch.tensor, (1.0, 2.0, 0.0, 1.0, 3.0, 4.0))
    inputs = zero, cos, sin, mask, position, cos_2, sin_2
    out, *_ = block(*inputs, *[zero] * 4)
    assert out.item() == 3 + 40 + 100 + 1 + 20 + 100
    out, *_ = block(*inputs, torch.tensor([5000.0]), *[zero] * 4)
    assert out.item() == 10264


def test_decoder_block_gives_recurrent_layers_the_count_of_rows():
    class Layer(nn.Module):
        def __init__(self, arrays):
            super().__init__()
            self.numbers, self.arrays, self.recurrent = LayerNumbers(), arrays, arrays != 2

        def step(self, x, call, state):
            count = 0 if call.count is None else call.count
            return x + count + sum(state), *[one + count for one in state]

    block = DecoderBlock([Layer(1), Layer(2), Layer(3)], None)
    zero, states = [torch.zeros(1)] * 4, [torch.tensor([2.0**n]) for n in range(6)]
    out, *present = block(torch.zeros(1, 2, 1), *zero, torch.tensor([100.0]), *states)
    assert out.flatten().tolist() == [363, 363]
    assert [p.item() for p in present] == [101, 102, 104, 108, 116, 132]
    out, *_ = block(torch.zeros(1, 1, 1), *zero, *states)  # a call of one row has no count
    assert out.item() == 63


def test_reduce_block_packs_then_reduces():
    class Method:
        signals = ()

        def __call__(self, features, *, shape):
            return features[:, :shape], torch.arange(shape, dtype=torch.int32)[None]

    class Flip(nn.Module):
        def forward(self, x):
            return x.flip(1)

    tokens, kept = ReduceBlock(Flip(), Method(), 2)(torch.arange(5.0).reshape(1, 5, 1))
    assert tokens.flatten().tolist() == [4, 3]
    assert kept.tolist() == [[0, 1]]


def test_reduce_block_passes_a_signal_of_the_kept_tokens_on():
    class Method:
        signals = ("keys",)

        def __call__(self, features, *, keys, shape):
            assert keys.flatten().tolist() == [5, 6, 7, 8]
            return features[:, 1:3], torch.tensor([[1, 2]], dtype=torch.int32)

    block = ReduceBlock(nn.Identity(), Method(), 2, ("loudness",))
    own, other = torch.tensor([[5.0, 6, 7, 8]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    _, _, passed_on = block(torch.arange(4.0).reshape(1, 4, 1), own, other)
    torch.testing.assert_close(passed_on, torch.tensor([[0.2, 0.3]]))
