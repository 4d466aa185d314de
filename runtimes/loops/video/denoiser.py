"""The denoiser of a bundle as the steps call it: one text or two over one load of each block.

A block is bound to its arrays once, so what it gives for one text is put aside before it runs for
the other, and put back before the next block takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from edgevlm.bundle.functions import Block
from edgevlm.runtimes.arrays import Array, finite
from edgevlm.runtimes.engine import Blocks
from edgevlm.runtimes.loops.video.arrays import Arrays
from edgevlm.runtimes.steps.run import Gate


class HasBlocks(Protocol):
    """A loop; a profile replaces its blocks."""

    blocks: Blocks


class DenoiserCalls:
    """Velocities by the blocks of a bundle; see `steps.run.Denoiser`.

    Args:
        loop: Whose blocks run.
        stage: Blocks of the denoiser.
        arrays: Arrays that they are bound to.
    """

    def __init__(self, loop: HasBlocks, stage: Sequence[Block], arrays: Arrays) -> None:
        self.loop, self._stage, self._arrays = loop, stage, arrays
        self._turns = [_Turn(arrays, stage) for _ in range(2)]
        self.texts: Sequence[Array] = ()  # embeddings of the text, and of the negative one

    def velocities(
        self, latents: Array, timestep: float, texts: int, gate: Gate | None
    ) -> list[Array]:
        """The velocity f32 [1, C, F, h, w] for each text, over one load of each block.

        Where a gate says that the layers do not run for a text, what they added before is added.
        """
        stage, arrays = self._stage, self._arrays
        arrays.step["latents"][...], arrays.step["timestep"][0] = latents, timestep
        every = [*range(texts)]
        self._run_block(0, every)
        if gate is None:
            for index in range(1, len(stage) - 1):
                self._run_block(index, every)
        else:
            self._gated(gate, every)
        return self._run_block(len(stage) - 1, every)

    def _gated(self, gate: Gate, every: Sequence[int]) -> None:
        """Run the layers for the texts for which the gate says so."""
        border, entering = 1 + gate.first, list[Array]()
        for index in range(1, border):
            entering = [self._turns[branch].hidden.copy() for branch in every]
            self._run_block(index, every)
        runs = [b for b in every if gate.runs(b, self._signal(b, entering))]
        before = {branch: self._turns[branch].hidden.copy() for branch in runs}
        for index in range(border, len(self._stage) - 1):
            if runs:
                self._run_block(index, runs)
        for branch in every:
            hidden = self._turns[branch].hidden
            if branch in before:
                gate.ran(branch, before[branch], hidden)
            else:
                hidden[...] = gate.skip(branch, hidden)

    def _run_block(self, index: int, branches: Sequence[int]) -> list[Array]:
        """Run a block of the denoiser for each text; velocities where it is the last one."""
        stage, arrays, given = self._stage, self._arrays, list[Array]()

        def turns() -> Iterator[None]:
            for branch in branches:
                turn = self._turns[branch]
                if index:
                    turn.restore(index)
                else:
                    arrays.step["text"][...] = self.texts[branch]
                yield
                if index + 1 < len(stage):
                    turn.store(index)
                else:
                    given.append(finite("denoiser", arrays.velocity).copy())

        self.loop.blocks.run_each(stage[index].name, "step", turns())
        return given

    def _signal(self, branch: int, entering: Sequence[Array]) -> Array:
        """What a gate reads: what the first block added, or what layers take of the timestep."""
        turn = self._turns[branch]
        return turn.hidden - entering[branch] if entering else turn.modulation


class _Turn:
    """What the blocks of the denoiser give for one text, until the next block takes it."""

    def __init__(self, arrays: Arrays, stage: Sequence[Block]) -> None:
        later = arrays.between
        self._given: list[dict[str, Array]] = []  # by block, the arrays that it gives, by name
        for index, block in enumerate(stage[:-1]):
            names = block.functions[0].links.values()
            taken = {name: _first_with(name, later[index:]) for name in names}
            self._given.append({name: array for name, array in taken.items() if array is not None})
        self._entering = later
        self._kept = {
            name: np.empty_like(array) for given in self._given for name, array in given.items()
        }

    @property
    def hidden(self) -> Array:
        """The hidden state that the last block gave."""
        return self._kept["hidden"]

    @property
    def modulation(self) -> Array:
        """What the layers take of the timestep."""
        return self._kept["modulation"]

    def store(self, index: int) -> None:
        """Keep what a block has given."""
        for name, array in self._given[index].items():
            self._kept[name][...] = array

    def restore(self, index: int) -> None:
        """Put back what a block takes."""
        for name, array in self._entering[index - 1].items():
            array[...] = self._kept[name]


def _first_with(name: str, entering: Sequence[dict[str, Array]]) -> Array | None:
    return next((arrays[name] for arrays in entering if name in arrays), None)
