"""Recurrent layers: what fills a call up leaves no trace, and no graph reads what it overwrote."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgevlm.bundle.functions import Block, Cache, Function, Tensor  # noqa: E402
from edgevlm.errors import TraceError  # noqa: E402
from edgevlm.graphs.recurrent.short_convolution import ShortConvolutionLayer  # noqa: E402
from edgevlm.graphs.trace import trace  # noqa: E402

WIDTH, TAPS = 8, 3
BLOCK = Block("decoder-0", "decoder", (0, 1), 0, ())


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def layer():
    torch.manual_seed(0)
    conv = SimpleNamespace(
        in_proj=nn.Linear(WIDTH, 3 * WIDTH, bias=False),
        conv=nn.Conv1d(WIDTH, WIDTH, TAPS, groups=WIDTH, bias=True),
        out_proj=nn.Linear(WIDTH, WIDTH, bias=False),
    )
    norm = nn.RMSNorm(WIDTH, eps=1e-5)
    feed = nn.Linear(WIDTH, WIDTH)
    own = SimpleNamespace(conv=conv, operator_norm=norm, ffn_norm=norm, feed_forward=feed)
    return ShortConvolutionLayer(own)


def count(rows):
    return torch.tensor([rows], dtype=torch.int32)


def test_a_token_sees_itself_and_those_before_it_by_the_taps(layer):
    """The mean of three tokens, with gates of 1: by hand, without MLP."""
    gates = torch.zeros(3 * WIDTH, WIDTH)
    gates[2 * WIDTH :] = torch.eye(WIDTH)
    layer.in_proj.weight.copy_(gates)
    layer.in_proj.bias = nn.Parameter(torch.cat((torch.ones(2 * WIDTH), torch.zeros(WIDTH))))
    layer.out_proj.weight.copy_(torch.eye(WIDTH))
    for tap in layer.taps:
        tap.fill_(1 / 3)
    for zero in (layer.bias, layer.feed_forward.weight, layer.feed_forward.bias):
        zero.zero_()
    x = torch.randn(1, 4, WIDTH)
    normed = torch.nn.functional.rms_norm(x, (WIDTH,), eps=1e-5)
    state = torch.randn(1, TAPS - 1, WIDTH)
    out, new = layer(x, state, None)
    before = torch.cat((state, normed), 1)
    means = torch.stack([before[:, row : row + 3].mean(1) for row in range(4)], 1)
    torch.testing.assert_close(out, x + means, rtol=0, atol=1e-6)
    torch.testing.assert_close(new, normed[:, 2:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_rows_that_fill_a_call_up_leave_no_trace(layer, rows):
    x, state = torch.randn(1, 8, WIDTH), torch.randn(1, TAPS - 1, WIDTH)
    alone, expected = layer(x[:, :rows], state, None)
    filled, new = layer(x, state, count(rows))
    torch.testing.assert_close(new, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(filled[:, :rows], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("calls", [(11,), (8, 3), (3, 8), (1,) * 11, (2, 1, 8)])
def test_calls_of_any_length_are_one(layer, calls):
    x, state = torch.randn(1, sum(calls), WIDTH), torch.zeros(1, TAPS - 1, WIDTH)
    whole, last = layer(x, state, None)
    outputs, first = [], 0
    for rows in calls:
        filled = torch.cat((x[:, first : first + rows], torch.randn(1, 4, WIDTH)), 1)
        out, state = layer(filled, state, count(rows))
        outputs.append(out[:, :rows])
        first += rows
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-6)


class Reader(nn.Module):
    """A state [1, 4], its new value, and what else is read of it: before, or at any time."""

    def __init__(self, before):
        super().__init__()
        self.before = before

    def forward(self, x, state):
        read = state * x
        new = (read if self.before else x) + 1
        return read.sum(), new


def traced(before):
    tensors = Tensor("x", "f32", (1, 4)), Tensor("past_recurrent_0_0", "f32", (1, 4))
    outputs = Tensor("y", "f32", ()), Tensor("present_recurrent_0_0", "f32", (1, 4))
    cache = Cache("recurrent_0_0", tensors[1].name, outputs[1].name)
    return trace(Reader(before), Function("decode", tensors, outputs, 0, (cache,)), BLOCK)


def test_a_state_that_may_be_read_after_it_is_overwritten_is_refused():
    assert traced(before=True) is not None
    expected = (
        "^decoder-0.decode: 'past_recurrent_0_0' may be read after 'present_recurrent_0_0' is"
    )
    with pytest.raises(TraceError, match=expected):
        traced(before=False)
