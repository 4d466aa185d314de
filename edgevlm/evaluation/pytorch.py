"""An unchanged checkpoint in PyTorch: transformers' own forward with all visual tokens.

The prompt is the plan's layout, as in `edgevlm.verify`; the answer is greedy. The keys and values
of a prefix that two prompts share (all up to the question, for one image) are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from edgevlm.errors import InputError, RecipeError
from edgevlm.evaluation.evaluate import MAX_NEW_TOKENS, Reply
from edgevlm.graphs.blocks import reduced
from edgevlm.graphs.layers import scaled
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.selection import rows_of
from edgevlm.libraries import bounded_threads
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.find import find
from edgevlm.models.quiet import without_kernel_advice
from edgevlm.models.weights.paging import KEPT_BYTES
from edgevlm.planning.plan import make_plan
from edgevlm.planning.vlm import VlmPlanned
from edgevlm.recipe import Recipe
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.sequence import Floats, PromptRows, assemble, text_rows
from edgevlm.runtimes.loops.spelling import Visual


def question_plan(recipe: Recipe, checkpoint: Checkpoint) -> VlmPlanned:
    """The plan of a model that answers questions.

    Raises:
        RecipeError: If the model gives something else.
    """
    planned = make_plan(recipe, checkpoint)
    if not isinstance(planned, VlmPlanned):
        raise RecipeError(f"'{recipe.model}' answers no questions; give a vision-language model")
    return planned


class TableRows:
    """The embedding table of a model, as the decoder takes its rows: `rows[ids]`, f32 [..., C].

    Those of a second table stand behind. Rows are read when they are asked for, as the whole table
    may be larger than memory.
    """

    def __init__(self, parts: ModelParts) -> None:
        self._matrices, self._spec = parts.table, parts.decoder.spec
        self._second, columns = parts.layer_table, parts.table[0].shape[1]
        columns += 0 if self._second is None else self._second.shape[1]
        self.shape = (sum(len(matrix) for matrix in parts.table), columns)

    def __getitem__(self, rows: Any) -> Floats:
        """Rows by index or indices.

        Raises:
            IndexError: If one is outside the table.
        """
        ids, count = np.asarray(rows), self.shape[0]
        if ids.size and not 0 <= ids.min() <= ids.max() < count:
            raise IndexError(f"rows {ids.min()} to {ids.max()} of a table of {count}")
        values = scaled(rows_of(self._matrices, ids), self._spec.table_scale).numpy()
        numbers = self._spec.per_layer
        if self._second is None or numbers is None:
            return values
        known = np.where(ids < len(self._second), ids, numbers.visual_row).reshape(-1)
        behind = scaled(self._second[known], numbers.scale).numpy().reshape(*ids.shape, -1)
        return np.concatenate((values, behind), axis=-1)


class PyTorchAnswerer:
    """The model of a plan without reductions; see `edgevlm.evaluation.evaluate.Answerer`."""

    engine = "pytorch"
    bundle_bytes: int | None = None
    picker = ""

    def __init__(
        self, planned: VlmPlanned, model: Any, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> None:
        self._planned, self._max_new_tokens = planned, max_new_tokens
        self._plan, self._model = planned.plan, model
        self._parts = self._planned.parts(self._model)
        self._table = TableRows(self._parts)
        self._tokenizer = planned.speller.bundled
        self.frames = self._plan.host.image.frames
        self.visual_tokens = self._plan.host.visual_tokens
        self._past: Any = None  # keys and values of `_rows`
        self._first = self._plan.host.first_position
        self._position = self._first  # of the next row
        self._rows: Floats = np.zeros((0, self._table.shape[1]), np.float32)

    @classmethod
    def open(cls, recipe: Recipe, threads: int | None = None) -> PyTorchAnswerer:
        """Load the recipe's checkpoint."""
        if threads is not None:
            torch.set_num_threads(bounded_threads(threads))
        planned = question_plan(recipe, find(recipe.model, recipe.revision))
        return cls(planned, planned.checkpoint.load_model(KEPT_BYTES))

    @torch.no_grad()
    def set_frames(self, frames: Sequence[Image.Image]) -> None:
        """Encode the frames."""
        pixels = torch.from_numpy(images.views(frames, self._plan.host.image))
        family, shape = self._planned.checkpoint.family, self._planned.description.shape
        features = family.reference_features(self._model, pixels, self._planned.description)
        levels = self._planned.own_levels(self._model, pixels)
        outputs = reduced(self._planned.method, features, shape, levels, tuple(levels))
        names = [t.name for t in self._plan.stage("reduce")[0].functions[0].outputs]
        arrays = {name: out.numpy() for name, out in zip(names, outputs, strict=True)}
        times = tuple(float(i) for i in range(self.frames))
        self._visual = Visual.of(arrays, times, float(self.frames))
        self._forget()

    @torch.no_grad()
    @without_kernel_advice()
    def ask(self, prompt: str, follow_up: bool) -> Reply:
        """Answer greedily; see `Answerer`."""
        layout, plan = self._plan.host.layout, self._plan
        items, first = (layout.turn, self._position) if follow_up else (layout.prompt, self._first)
        if not items:
            raise InputError("the model answers one question about a picture, got a further one")
        visuals = [] if follow_up else [self._visual]
        turn = assemble(plan, items, self._table, self._tokenizer, prompt, visuals, first)
        length = len(self._rows) if follow_up else 0
        context = plan.host.states.tokens  # as long as a bundle's
        room = context - length - len(turn.rows)
        if room < 1:
            raise InputError(
                f"the turn has {len(turn.rows)} tokens, the context of {context} has room for"
                f" {max(context - length - 1, 0)}; give a larger --context"
            )
        if not follow_up:
            turn = self._keep_prefix(turn)
        ids = [self._feed(turn)]
        stops, limit = set(plan.host.stop_ids), min(self._max_new_tokens, room)
        while ids[-1] not in stops and len(ids) < limit:
            ids.append(self._feed_token(ids[-1]))
        stopped = ids[-1] in stops
        if not stopped:
            self._feed_token(ids[-1])  # the next turn begins after the reply
        reply = ids[:-1] if stopped else ids
        return Reply(self._tokenizer.decode(reply, skip_special_tokens=True))

    def _keep_prefix(self, prompt: PromptRows) -> PromptRows:
        """Cut the cache to the prefix that it shares with `prompt`; the rest of `prompt`."""
        most = min(len(self._rows), len(prompt.rows) - 1)  # the logits need one row at least
        differs = (self._rows[:most] != prompt.rows[:most]).any(1)
        shared = int(differs.argmax()) if differs.any() else most
        spec = self._parts.decoder.spec
        if spec.recurrent or spec.beside_causal(self._plan.host.states.tokens):
            shared = 0  # rows that see later ones, or a cache that cannot go back
        if shared == 0:
            self._forget()
        elif shared < len(self._rows):
            self._past.crop(shared - len(self._rows))
        self._rows = self._rows[:shared]
        return prompt.after(shared)

    def _feed_token(self, token: int) -> int:
        return self._feed(text_rows(self._plan, self._table[token][None], self._position))

    def _feed(self, piece: PromptRows) -> int:
        """Run rows; the most likely next token."""
        own = self._parts.decoder.own
        further: dict[str, Any] = {"levels": piece.levels, "visual": piece.visual}
        out = own(piece.rows, piece.positions, self._past, groups=piece.groups, **further)
        self._past = out.cache
        self._rows = np.concatenate([self._rows, piece.rows])
        self._position = piece.next
        last = out.last_hidden_state[:, -1]
        return int(self._parts.scores(last).argmax())

    def _forget(self) -> None:
        self._past, self._position, self._rows = None, self._first, self._rows[:0]
