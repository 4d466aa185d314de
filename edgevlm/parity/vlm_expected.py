"""What a vlm should answer: transformers' own model in PyTorch, greedy tokens and their logits.

The model's own encoder, the same method on its features, and its own language model with its own
cache. Where tokens merge inside the encoder, or leave inside the decoder, the model's own forward
does something else: then it is that part of the blocks in PyTorch, in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.graphs.blocks import reduced
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.pruning import PrunedDecoderBlock
from edgevlm.graphs.signals import method_inputs
from edgevlm.parity.compare import Array
from edgevlm.planning.vlm import VlmPlanned
from edgevlm.runtimes.loops.sequence import (
    PromptRows,
    causal_mask,
    prompt_state,
    rotary_tables,
    text_positions,
    text_rows,
)


@dataclass(frozen=True)
class ExpectedAnswer:
    """Greedy tokens with their logits [steps, V], and the visual tokens that they answer to.

    `kept` are the positions of the visual tokens [K], `visual` the tokens themselves [1, K, C].
    """

    tokens: tuple[int, ...]
    logits: Array
    kept: Array
    visual: Array


@dataclass(frozen=True)
class ExpectedAnswers:
    """The model in PyTorch; `rows` makes the prompt's rows from the outputs of `reduce`."""

    model: Any
    parts: ModelParts
    planned: VlmPlanned
    rows: Callable[..., PromptRows]

    def answer(self, pixels: Array, steps: int) -> ExpectedAnswer:
        """To one image or clip [P, 3, h, w]."""
        return self.answer_to(self._reduced(torch.from_numpy(pixels)), steps)

    def answer_to(self, reduced: list[Array], steps: int) -> ExpectedAnswer:
        """To outputs of `reduce`, with the batch axis."""
        prompt = self.rows(*(array[0] for array in reduced))
        if self.parts.pruning is not None:
            tokens, logits = pruned_answer(self.parts, self.planned.plan, prompt, steps)
        else:
            tokens, logits = _answer(self.parts, self.planned.plan, prompt, steps)
        return ExpectedAnswer(tokens, logits, reduced[1][0], reduced[0])

    def _reduced(self, views: torch.Tensor) -> list[Array]:
        """Outputs of the method of site `tokens`."""
        planned, signals = self.planned, dict[str, torch.Tensor]()
        methods, merging = planned.methods, planned.encoder_method is not None
        if methods.signals or merging:
            features, signals = method_inputs(self.parts, methods.signals, views)
        if not merging:
            family = planned.checkpoint.family
            features = family.reference_features(self.model, views, planned.description)
            signals |= planned.own_levels(self.model, views)
        shape = planned.description.shape
        outputs = reduced(planned.method, features, shape, signals, methods.passed_on)
        return [tensor.numpy() for tensor in outputs]


def _answer(
    parts: ModelParts, plan: VlmPlan, prompt: PromptRows, steps: int
) -> tuple[tuple[int, ...], Array]:
    """Tokens and logits of the model's own language model."""
    piece, cache, length, tokens, logits = prompt, None, 0, list[int](), []
    for _ in range(steps):
        mask = None
        if prompt.bias is not None:  # else the model makes its own
            bias = np.pad(prompt.bias, (0, len(tokens)))
            mask = torch.from_numpy(causal_mask(length, len(piece.rows), len(bias)) + bias)
        length += len(piece.rows)
        outputs = parts.decoder.own(
            piece.rows, piece.positions, cache, mask, piece.levels, piece.visual, piece.groups
        )
        cache = outputs.cache
        scores = parts.scores(outputs.last_hidden_state[:, -1])
        logits.append(scores[0].numpy())
        tokens.append(int(scores.argmax()))
        piece = text_rows(plan, parts.word(tokens[-1])[0].numpy(), piece.next)
    return tuple(tokens), np.stack(logits)


def pruned_answer(
    parts: ModelParts, plan: VlmPlan, prompt: PromptRows, steps: int
) -> tuple[tuple[int, ...], Array]:
    """Tokens and logits where visual tokens leave inside the decoder: all its layers as one."""
    assert parts.pruning is not None
    layers, norm = parts.decoder.layers, parts.decoder.norm
    decoder = PrunedDecoderBlock(layers, norm, 0, parts.pruning).eval()
    cache = [torch.zeros(shape) for state in plan.host.states.each for shape in state.shapes]
    inputs = [torch.from_numpy(array) for array in prompt_state(plan, prompt).values()]
    tokens, logits = list[int](), []
    for step in range(steps):
        hidden, *cache = decoder(*inputs, *cache)
        scores = parts.scores(hidden[:, 0])
        logits.append(scores[0].numpy())
        tokens.append(int(scores.argmax()))
        positions = text_positions(plan, prompt.next + step, 1)
        tables = [torch.from_numpy(table)[None] for table in rotary_tables(plan, positions)]
        position = torch.tensor([len(prompt.rows) + step], dtype=torch.int32)
        inputs = [parts.word(tokens[-1]), *tables, position, torch.ones_like(position)]
    return tuple(tokens), np.stack(logits)
