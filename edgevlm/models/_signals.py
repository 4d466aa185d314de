"""What methods learn from the encoder beside its features: attention and keys of one layer.

    cls_attention         [1, N]     attention of the class token to each token, mean of heads
    early_cls_attention   [1, N]     the same in the first layer
    flat_cls_attention    [1, N]     the same, as if the layer had one head
    keys                  [1, N, D]  keys, mean of heads
    flat_keys             [1, N, C]  keys of all heads side by side

They are those of the layer that gives the features, computed from the queries and keys which that
layer has anyway. The class token itself is left out. A tower without one has no such row; its
stand-in is the attention that a token receives, mean of all queries, as VisionZip does for such
towers (arXiv 2412.04467, section 3.2). It needs all N x N weights of one layer, once.

A connector that folds patches into a token folds their signals too: the token has their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.models._family import Pieces
from edgevlm.models._layers import EncoderLayer

EARLY = "early_cls_attention"
KEYS, FLAT = ("keys", "flat_keys"), ("flat_cls_attention", "flat_keys")


class Observed(nn.Module):
    """An encoder layer that also gives signals: [1, N, C] -> the same, and each signal."""

    def __init__(
        self, layer: EncoderLayer, names: Sequence[str], class_token: bool, fold: nn.Module
    ) -> None:
        super().__init__()
        self.layer, self.names = layer, tuple(names)
        self.class_token, self.fold = class_token, fold

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        query, key, value = self.layer.project(x)
        heads = self.layer.heads
        signals = []
        for name in self.names:
            count = 1 if name in FLAT else heads
            wanted = _keys(key, count)
            if name not in KEYS:
                wanted = _attention(query, key, count, self.class_token)
            signals.append(self._own_tokens(wanted))
        return self.layer.finish(x, query, key, value), *signals

    def _own_tokens(self, signal: Tensor) -> Tensor:
        """Drop the class token and fold patches: [1, 1 + N, E] -> [1, N, E], [1, N] if E is 1."""
        folded: Tensor = self.fold(signal[:, 1:] if self.class_token else signal)
        return folded.squeeze(-1) if folded.shape[-1] == 1 else folded


def observe(pieces: Pieces, names: Sequence[str]) -> Pieces:
    """The pieces with the layers that give `names` observed."""
    vision: list[Any] = list(pieces.vision)
    last = len(vision) - 2  # the connector is the last piece, the embedding the first
    for index in {1, last}:
        here = [name for name in names if (1 if name == EARLY else last) == index]
        if here:
            vision[index] = Observed(vision[index], here, pieces.class_token, pieces.fold)
    return replace(pieces, vision=tuple(vision))


def method_signals(pieces: Pieces, names: Sequence[str], pixel_values: Tensor) -> dict[str, Tensor]:
    """Signals of all views f32 [P, 3, h_px, w_px] in PyTorch, in the order of the method."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for index in range(len(pixel_values) if names else 0):
        x = pixel_values[index : index + 1]
        for piece in pieces.vision[:-1]:
            made = piece(x)
            x = made[0] if isinstance(made, tuple) else made
            if isinstance(piece, Observed):
                for name, signal in zip(piece.names, made[1:], strict=True):
                    found[name].append(signal)
    joined = {name: torch.cat(parts, 1) for name, parts in found.items()}
    return {name: pack(pieces.pack, signal) for name, signal in joined.items()}


def pack(module: nn.Module, signal: Tensor) -> Tensor:
    """A signal of all views, [1, P*N] or [1, P*N, E], in the order of the method's features."""
    wide = signal if signal.dim() == 3 else signal.unsqueeze(-1)
    packed: Tensor = module(wide)
    return packed.reshape(signal.shape)


def signal_shape(pieces: Pieces, name: str, tokens: int) -> tuple[int, ...]:
    """Shape of a signal of one view with `tokens` tokens."""
    last = pieces.vision[-2]
    layer: Any = last.layer if isinstance(last, Observed) else last
    wide = {"keys": layer.head_size, "flat_keys": layer.head_size * layer.heads}
    return (1, tokens, wide[name]) if name in KEYS else (1, tokens)


def _keys(key: Tensor, heads: int) -> Tensor:
    return key.reshape(1, key.shape[1], heads, -1).mean(2)  # [1, N, D]


def _attention(query: Tensor, key: Tensor, heads: int, class_token: bool) -> Tensor:
    """One weight a token, [1, N, 1]: of the class token's row, or the mean of all rows."""
    rows = query[:, :1] if class_token else query
    rows, columns = (x.reshape(1, x.shape[1], heads, -1).transpose(1, 2) for x in (rows, key))
    weights = (rows * columns.shape[-1] ** -0.5 @ columns.transpose(2, 3)).softmax(-1)
    return weights.mean((1, 2)).unsqueeze(-1)
