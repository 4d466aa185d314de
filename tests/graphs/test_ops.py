"""Our three operators against plain PyTorch maths, and their shapes without data."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from edgevlm.graphs.ops import attention, attention_kv, rotary  # noqa: E402
from edgevlm.runtimes.loops.sequence import causal_mask  # noqa: E402


def split(x, heads):
    """[1, S, H*D] -> [H, S, D]."""
    return x[0].reshape(x.shape[1], heads, -1).transpose(0, 1)


def softmax_attention(query, key, value, allowed=None):
    """The definition, one head at a time: [H, S, D] each -> [1, S, H*D]."""
    heads = []
    for q, k, v in zip(query, key, value, strict=True):
        scores = q @ k.T / math.sqrt(q.shape[-1])
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        heads.append(torch.softmax(scores, -1) @ v)
    return torch.cat(heads, -1)[None]


def cache_call(rows, position, length, heads=4, groups=2, size=8, seed=0):
    """Arguments of attention_kv; the cache holds noise, as after another conversation."""
    torch.manual_seed(seed)
    past = [torch.randn(1, groups, length, size) for _ in range(2)]
    new = [torch.randn(1, rows, n * size) for n in (heads, groups, groups)]
    mask = torch.from_numpy(causal_mask(position, rows, length))
    return (*new, *past, mask, torch.tensor([position], dtype=torch.int32), heads)


def test_attention_is_softmax_of_scaled_scores():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 10, 24)
    expected = softmax_attention(*(split(x, 3) for x in (q, k, v)))
    torch.testing.assert_close(attention(q, k, v, 3), expected)


def test_tokens_of_a_window_see_each_other_alone():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 10, 24)
    each = [attention(*(x[i : i + 1] for x in (q, k, v)), 3) for i in range(4)]
    torch.testing.assert_close(attention(q, k, v, 3), torch.cat(each))
    with FlopCounterMode(display=False) as counter:
        attention(q, k, v, 3)
    assert counter.get_total_flops() == 4 * 4 * 10 * 10 * 24


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 6),
    position=st.integers(0, 6),
    spare=st.integers(0, 5),
    groups=st.sampled_from([1, 2, 4]),
)
def test_attention_kv_sees_past_and_own_rows_alone(rows, position, spare, groups):
    length = position + rows + spare
    query, key, value, key_cache, value_cache, _, _, heads = arguments = cache_call(
        rows, position, length, groups=groups
    )
    out, written_keys, written_values = attention_kv(*arguments)
    k, v = key_cache.clone()[0], value_cache.clone()[0]
    k[:, position : position + rows] = split(key, groups)
    v[:, position : position + rows] = split(value, groups)
    assert torch.equal(written_keys[0], k)
    assert torch.equal(written_values[0], v)
    allowed = torch.arange(length)[None] <= torch.arange(position, position + rows)[:, None]
    k, v = (x.repeat_interleave(heads // groups, dim=0) for x in (k, v))  # query heads in order
    torch.testing.assert_close(out, softmax_attention(split(query, heads), k, v, allowed))


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("window", [0, 1, 3, 20])
def test_numbers_of_attention_kv(softcap, window):
    rows, position, length, scale = 3, 4, 10, 0.3
    query, key, value, key_cache, value_cache, mask, at, heads = cache_call(rows, position, length)
    arguments = query, key, value, key_cache, value_cache, mask, at, heads
    out, keys, values = attention_kv(*arguments, scale=scale, softcap=softcap, window=window)
    own = torch.arange(position, position + rows)[:, None]
    allowed = torch.arange(length)[None] <= own
    if window:
        allowed &= torch.arange(length)[None] > own - window
    scores = scale * split(query, heads) @ keys[0].repeat_interleave(2, 0).transpose(1, 2)
    scores = scores / math.sqrt(8)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    shares = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    expected = (shares @ values[0].repeat_interleave(2, 0)).transpose(0, 1).reshape(1, rows, -1)
    torch.testing.assert_close(out, expected)


def test_a_mask_may_show_later_rows():
    query, key, value, key_cache, value_cache, mask, at, heads = cache_call(3, 4, 10)
    mask[..., 0, 5] = 0.0  # the first new row sees the second
    arguments = query, key, value, key_cache, value_cache, mask, at, heads
    out, keys, values = attention_kv(*arguments, causal=False)
    allowed = mask[0, 0] == 0
    keys, values = (x[0].repeat_interleave(2, 0) for x in (keys, values))
    torch.testing.assert_close(out, softmax_attention(split(query, heads), keys, values, allowed))


def test_attention_kv_leaves_its_inputs():
    arguments = cache_call(3, 4, 10)
    before = [x.clone() for x in arguments[:5]]
    attention_kv(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments[:5], before, strict=True))


def test_what_stands_in_hidden_rows_does_not_matter():
    query, key, value, key_cache, value_cache, mask, at, heads = cache_call(3, 4, 10)
    out = attention_kv(query, key, value, key_cache, value_cache, mask, at, heads)[0]
    key_cache[:, :, 4:], value_cache[:, :, 4:] = 100.0, -100.0
    again = attention_kv(query, key, value, key_cache, value_cache, mask, at, heads)[0]
    assert torch.equal(out, again)


def test_rotary_turns_pairs_of_the_two_halves():
    torch.manual_seed(0)
    heads, size, length = 2, 6, 5
    x = torch.randn(1, length, heads * size)
    angles = torch.randn(length, size // 2)
    cos, sin = (torch.cat((f(angles), f(angles)), -1)[None] for f in (torch.cos, torch.sin))
    pairs = torch.complex(*split(x, heads).chunk(2, dim=-1)) * torch.polar(torch.ones(()), angles)
    expected = torch.cat((pairs.real, pairs.imag), -1).transpose(0, 1).reshape(1, length, -1)
    torch.testing.assert_close(rotary(x, cos, sin, heads), expected)
    wide = torch.cat((split(x, heads), torch.ones(heads, length, 4)), -1)  # of 10 numbers 6 turn
    wide = wide.transpose(0, 1).reshape(1, length, -1)
    turned = split(rotary(wide, cos, sin, heads), heads)
    torch.testing.assert_close(turned[..., :size], split(expected, heads))
    assert (turned[..., size:] == 1).all()


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (attention, (*torch.zeros(3, 1, 5, 8), 2)),
        (attention_kv, cache_call(3, 2, 8)),
        (rotary, (torch.zeros(1, 5, 8), torch.zeros(1, 5, 4), torch.zeros(1, 5, 4), 2)),
        (rotary, (torch.zeros(1, 5, 8), torch.zeros(1, 5, 2), torch.zeros(1, 5, 2), 2)),
    ],
)
def test_shapes_without_data_are_those_with_data(operator, arguments):
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        made = operator(*fake)
    real = operator(*arguments)
    tensors = (made, real) if isinstance(made, tuple) else ((made,), (real,))
    for a, b in zip(*tensors, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_flops_are_two_matmuls_over_the_whole_cache():
    with FlopCounterMode(display=False) as counter:
        attention(*torch.zeros(3, 1, 5, 8), 2)
    assert counter.get_total_flops() == 2 * (2 * 5 * 5 * 8)
    with FlopCounterMode(display=False) as counter:
        attention_kv(*cache_call(3, 2, 10, heads=4, size=8))
    assert counter.get_total_flops() == 2 * (2 * 3 * 10 * 32)
