"""The stage `vision` of every kind: an image encoder, cut between its parts.

Where tokens have merged, size and origin go beside the hidden state: the patches that each token
stands for [1, n, 1], and for each patch the token that it is part of [1, patches].
"""

from __future__ import annotations

from collections.abc import Iterable

from edgevlm.bundle.functions import Chain, Signature, Tensor
from edgevlm.bundle.host import EncoderShape, ImageSpec, Signal


def encode(
    image: ImageSpec, encoder: EncoderShape, span: tuple[int, int], result: Tensor
) -> Signature:
    """`encode` of a block: `span` are its parts, `result` is what the last one gives."""
    start, stop = span
    inputs = [Tensor("pixel_values", "f32", (1, image.channels, image.height, image.width))]
    if start > 0:
        inputs = _hidden(encoder, start)
    outputs, chained = [result], list[Chain]()
    if stop < encoder.parts:
        state = _hidden(encoder, stop)
        if encoder.tokens[stop - 1] == encoder.tokens[max(start, 1) - 1]:
            state = state[:1]  # nothing merges here: size and origin are as they came
        outputs, chained = passed_on(state)
    signals = [
        Tensor(s.name, "f32", signal_shape(s, encoder.view_tokens))
        for s in sorted(encoder.signals, key=lambda signal: signal.part)
        if start <= s.part < stop
    ]
    # The connector asks for no size, and many layers for no origin.
    unread = frozenset(("size", "origin"))
    return Signature(tuple(inputs), (*outputs, *signals), (), tuple(chained), unread)


def signal_shape(signal: Signal, tokens: int) -> tuple[int, ...]:
    """Shape of a signal of so many tokens."""
    return (1, tokens, signal.width) if signal.width else (1, tokens)


def passed_on(state: Iterable[Tensor]) -> tuple[list[Tensor], list[Chain]]:
    """Outputs that the next block takes, and which input each is there."""
    outputs, chained = list[Tensor](), list[Chain]()
    for tensor in state:
        chained.append(Chain(f"{tensor.name}_out", tensor.name))
        outputs.append(Tensor(chained[-1].output, tensor.dtype, tensor.shape))
    return outputs, chained


def _hidden(encoder: EncoderShape, part: int) -> list[Tensor]:
    """What enters a part of the encoder."""
    tokens = encoder.tokens[part - 1]
    hidden = [Tensor("hidden", "f32", (1, tokens, encoder.width))]
    if encoder.merged(part):
        hidden.append(Tensor("size", "f32", (1, tokens, 1)))
        hidden.append(Tensor("origin", "i32", (1, encoder.tokens[0])))
    return hidden
