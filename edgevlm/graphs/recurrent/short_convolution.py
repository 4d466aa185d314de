"""LFM2's layer: a gated depthwise convolution over the last tokens, and an MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgevlm.graphs.layers import LayerCall, LayerNumbers, rms_norm


class ShortConvolutionLayer(nn.Module):
    """LFM2's layer: a gated depthwise convolution over the last K tokens, then an MLP.

    b, c, x = in(h);  y = out(c * conv(b * x)),  over [1, S, C]. The state is b * x of the K - 1
    tokens before the call, [1, K - 1, C].

    Source: LFM2 technical report (arXiv 2511.23404), section 2.
    """

    arrays: ClassVar[int] = 1
    recurrent: ClassVar[bool] = True

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.numbers, short = LayerNumbers(), layer.conv
        self.operator_norm, self.ffn_norm = layer.operator_norm, layer.ffn_norm
        self.in_proj, self.out_proj = short.in_proj, short.out_proj
        self.taps = taps_of(short.conv)
        self.bias, self.feed_forward = short.conv.bias, layer.feed_forward

    def step(self, x: Tensor, call: LayerCall, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The layer's output, and its state after the rows of the sequence."""
        outputs: tuple[Tensor, ...] = self(x, *state, call.count)
        return outputs

    def forward(self, x: Tensor, state: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
        gates = self.in_proj(rms_norm(self.operator_norm, x))  # [1, S, 3C]
        before, after, inner = gates.chunk(3, dim=2)
        mixed, state = causal_convolution(before * inner, state, [*self.taps], count)
        if self.bias is not None:
            mixed = mixed + self.bias
        x = x + self.out_proj(after * mixed)
        return x + self.feed_forward(rms_norm(self.ffn_norm, x)), state


def taps_of(convolution: Any) -> nn.ParameterList:
    """The weights [F] of each tap of a depthwise convolution, so that no graph cuts them out."""
    taps = convolution.weight.detach().unbind(2)  # [F, 1] each
    return nn.ParameterList(
        nn.Parameter(tap[:, 0].contiguous(), requires_grad=False) for tap in taps
    )


def causal_convolution(
    x: Tensor, past: Tensor, taps: Sequence[Tensor], count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each channel's weighted sum of a row and the rows before it, and the rows to go on with.

    Products and sums of whole rows: a convolution with one channel a group has no fast form on most
    targets, and rows stay rows.

    Args:
        x: f32 [1, S, F].
        past: f32 [1, K - 1, F], the rows before.
        taps: K weights a channel, f32 [F] each; the last is for a row itself.
        count: i32 [1], rows of x that are not filled up; None for all.

    Returns:
        [1, S, F], and the last K - 1 rows up to `count`, [1, K - 1, F].
    """
    width, rows = len(taps), x.shape[1]
    every = torch.cat((past, x), dim=1)
    out = every[:, :rows] * taps[0]
    for tap in range(1, width):
        out = out + every[:, tap : tap + rows] * taps[tap]
    if count is None:
        return out, every[:, rows:]
    return out, every.index_select(1, count.long() + torch.arange(width - 1))
