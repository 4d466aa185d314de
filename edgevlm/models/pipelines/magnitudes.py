"""Magnitudes of what a denoiser's layers add, measured over one video in PyTorch.

MagCache (arXiv 2506.09045): from step to step the length of what the layers add to a token changes
by nearly the same factor for any prompt and seed, so one run is enough. As diffusers calibrates:
the mean over tokens of |added at a step| / |added at the step before|, 1 at the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgevlm.bundle.kinds.diffusion import DiffusionHost
from edgevlm.bundle.kinds.shared.video import Schedule
from edgevlm.models.own_processors import load_tokenizer
from edgevlm.models.pipelines.checkpoint import PipelineCheckpoint
from edgevlm.runtimes.loops.video.noise import noise
from edgevlm.runtimes.steps.rules import BlocksRule, Floats
from edgevlm.runtimes.steps.run import Gate, Steps

PROMPT, NEGATIVE, SEED = "a person walks along a street in the rain", "", 0


class PartsDenoiser:
    """A denoiser's static modules as `Steps` calls them; see `steps.run.Denoiser`.

    Args:
        parts: Embeddings, layers, head.
        texts: Embeddings f32 [1, S, Ct] of the text, and of the negative one.
        border: Layers of the first block.
    """

    def __init__(
        self, parts: Sequence[nn.Module], texts: Sequence[Tensor], border: int = 1
    ) -> None:
        self._begin, *self._layers, self._end = parts
        self._texts, self._border = texts, border

    @torch.no_grad()
    def velocities(
        self, latents: Floats, timestep: float, texts: int, gate: Gate | None
    ) -> list[Floats]:
        """As `steps.run.Denoiser`."""
        given = torch.from_numpy(latents), torch.tensor([timestep], dtype=torch.float32)
        return [
            self._velocity(*self._begin(*given, self._texts[branch]), branch=branch, gate=gate)
            for branch in range(texts)
        ]

    def _velocity(
        self, hidden: Tensor, *beside: Tensor, branch: int, gate: Gate | None
    ) -> Floats:
        *beside_layers, time = beside
        first = self._border if gate is not None and gate.first else 0
        signal, entering = beside_layers[0], hidden
        for layer in self._layers[:first]:
            hidden = layer(hidden, *beside_layers)
        if first:
            signal = hidden - entering
        entering = hidden
        if gate is not None and not gate.runs(branch, signal.numpy()):
            hidden = torch.from_numpy(gate.skip(branch, hidden.numpy()))
        else:
            for layer in self._layers[first:]:
                hidden = layer(hidden, *beside_layers)
            if gate is not None:
                gate.ran(branch, entering.numpy(), hidden.numpy())
        velocity: Floats = self._end(hidden, time).numpy()
        return velocity


def magnitudes(
    host: DiffusionHost,
    parts: Sequence[nn.Module],
    texts: Sequence[Tensor],
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[float, ...]:
    """The magnitude of each step, of the text's own run; guidance as the bundle has it.

    Args:
        host: Whose schedule is run.
        parts: Embeddings, layers, head.
        texts: Embeddings f32 [1, S, Ct] of a text, and of a negative one.
        progress: Called with one line per step.
    """
    steps = Steps(host.schedule, host.guidance)
    steps.gate = measuring = _Measuring()
    begun = noise((1, *host.denoiser.latents), SEED)
    progress(f"measure magnitudes (step 1 of {host.schedule.steps})")
    for step in steps.run(begun, PartsDenoiser(parts, texts)):
        if step.index + 1 < host.schedule.steps:
            progress(f"measure magnitudes (step {step.index + 2} of {host.schedule.steps})")
    return tuple(measuring.found)


def prompts(checkpoint: PipelineCheckpoint, model: Any, tokens: int) -> list[Tensor]:
    """Embeddings f32 [1, S, Ct] of the prompt that is measured with, and of the negative one."""
    given = load_tokenizer(checkpoint)(
        [PROMPT, NEGATIVE], padding="max_length", truncation=True, max_length=tokens
    )
    ids, mask = torch.tensor(given["input_ids"]), torch.tensor(given["attention_mask"])
    with torch.no_grad():
        texts: Tensor = checkpoint.family.reference_text(model, ids, mask)
    return [texts[:1], texts[1:]]


class _Always(BlocksRule):
    def begin(self, schedule: Schedule) -> None:
        pass

    def runs(self, index: int, branch: int, signal: Floats) -> bool:
        return True


class _Measuring(Gate):
    """Lets all layers run, and compares what they add for the text with the step before."""

    def __init__(self) -> None:
        super().__init__(_Always())
        self.found: list[float] = []

    def ran(self, branch: int, entering: Floats, leaving: Floats) -> None:
        before = self._added.get(branch)
        super().ran(branch, entering, leaving)
        if branch == 0:
            lengths = np.linalg.norm(self._added[branch], axis=-1)
            ratio = 1.0
            if before is not None:
                ratio = float((lengths / (np.linalg.norm(before, axis=-1) + 1e-8)).mean())
            self.found.append(ratio)
