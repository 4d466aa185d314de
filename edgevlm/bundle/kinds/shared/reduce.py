"""The stage `reduce` of kind `vlm`: the functions that choose visual tokens.

A host is a `bundle.kinds.vlm.VlmHost`, which imports this module.
"""

from __future__ import annotations

from typing import Any

from edgevlm.bundle.checks import expect
from edgevlm.bundle.documents import shown
from edgevlm.bundle.functions import Signature, Tensor
from edgevlm.bundle.host import LEVELS
from edgevlm.bundle.kinds.shared.vision import signal_shape


def clip(host: Any) -> Signature:
    """`reduce`: features and signals of all views of one image or clip."""
    total, channels = host.image.views * host.encoder.view_tokens, host.embedding.columns
    signals = [Tensor(s.name, "f32", signal_shape(s, total)) for s in host.encoder.signals]
    outputs = _chosen(host.visual_tokens, channels)
    if host.calibrated:
        outputs.append(Tensor("log_sizes", "f32", (1, host.visual_tokens)))
    if host.carried == "vision":
        outputs.append(Tensor("visual_signal", "f32", (1, host.visual_tokens)))
    for name in LEVELS[: len(host.levels)]:
        outputs.append(Tensor(f"kept_{name}", "f32", (1, host.visual_tokens, channels)))
    inputs = (Tensor("features", "f32", (1, total, channels)), *signals)
    return Signature(inputs, tuple(outputs), unread=frozenset(s.name for s in signals))


def frame(host: Any) -> Signature:
    """`stream`: features and signals of a view, and features of the one before it.

    Positions count within the view.
    """
    size = (1, host.encoder.view_tokens, host.embedding.columns)
    signals = [
        Tensor(s.name, "f32", signal_shape(s, host.encoder.view_tokens))
        for s in host.encoder.signals
    ]
    inputs = Tensor("previous", "f32", size), Tensor("features", "f32", size), *signals
    outputs = _chosen(host.stream.tokens, host.embedding.columns)
    unread = frozenset(("previous", *(s.name for s in signals)))
    return Signature(inputs, tuple(outputs), unread=unread)


def check(host: Any) -> None:
    """Refuse numbers of a stream that do not fit the host.

    Raises:
        BundleError: One line that names the field.
    """
    if host.stream is None:
        return
    tokens, turned, most = host.stream.tokens, list(host.stream.turned), host.encoder.view_tokens
    expect(1 <= tokens <= most, f"host.stream.tokens is {shown(tokens)}, expected 1 to {most}")
    layers = len(host.states.layers)
    good = turned == sorted({*turned}) and all(0 <= layer < layers for layer in turned)
    expect(good, f"host.stream.turned is {shown(str(turned))} for {layers} layers")
    reason = no_stream(host)
    expect(not reason, f"host.stream: {reason}")


def no_stream(host: Any) -> str:
    """Why a bundle with such a host takes no stream; empty if it can."""
    if host.image.views < 2:
        return "a stream needs a bundle of clips, of two views or more"
    if host.states.recurrent:
        return "what a frame did to recurrent layers cannot be taken out of them"
    if host.states.form != "shared_buffer":
        return "the runtime keeps the cache, from which the host cannot take frames"
    if host.entering:
        return "visual tokens leave inside the decoder, which takes whole prompts"
    if host.calibrated:
        return "attention is calibrated for one picture or clip"
    if host.levels:
        return "features of further levels of the encoder are added inside the decoder"
    if host.mask != "causal":
        return "tokens of a prompt see later ones"
    return ""


def _chosen(tokens: int, channels: int) -> list[Tensor]:
    """Tokens that are kept, and where they stood."""
    return [
        Tensor("visual_tokens", "f32", (1, tokens, channels)),
        Tensor("kept_positions", "i32", (1, tokens)),
    ]
