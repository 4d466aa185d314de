"""A checkpoint as it is, in PyTorch: transformers' own forward with all visual tokens.

The prompt is the plan's layout, as in `edgevlm.verify`; the answer is greedy. The keys and values
of rows that two prompts begin with (all up to the question, for one picture) are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from edgevlm.errors import InputError
from edgevlm.evaluate import MAX_NEW_TOKENS, Reply
from edgevlm.models._checkpoint import find
from edgevlm.planning import Planned, make_plan
from edgevlm.recipe import Recipe
from edgevlm.runtimes import images
from edgevlm.runtimes.sequence import Floats, Piece, Visual, assemble


class TorchAnswerer:
    """The model of a plan without reductions; see `edgevlm.evaluate.Answerer`."""

    engine = "pytorch"
    bundle_bytes: int | None = None

    def __init__(self, planned: Planned, model: Any, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        checkpoint = planned.checkpoint
        self._planned, self._most = planned, max_new_tokens
        self._plan, self._model = planned.plan, model
        self._pieces = self._planned.pieces(self._model)
        tables = self._pieces.table
        self._table = (tables[0] if len(tables) == 1 else torch.cat(tables)).numpy()
        self._tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True  # as a bundle's: `<image>` stays a word
        self.frames = self._plan.host.image.frames
        self.visual_tokens = self._plan.visual_tokens
        self._past: Any = None  # keys and values of `_rows`
        self._position = 0  # of the next row
        self._rows: Floats = np.zeros((0, self._table.shape[1]), np.float32)

    @classmethod
    def open(cls, recipe: Recipe, threads: int | None = None) -> TorchAnswerer:
        """Load the recipe's checkpoint."""
        if threads is not None:
            torch.set_num_threads(threads)
        checkpoint = find(recipe.model, recipe.revision)
        return cls(make_plan(recipe, checkpoint), checkpoint.load_model())

    @torch.no_grad()
    def show(self, pictures: Sequence[Image.Image]) -> None:
        """Encode the pictures."""
        pixels = torch.from_numpy(images.views(pictures, self._plan.host.image))
        family, shape = self._planned.checkpoint.family, self._planned.description.shape
        features = family.reference_features(self._model, pixels, self._planned.description)
        tokens, kept = self._planned.method(features, shape=shape)
        times = tuple(float(i) for i in range(self.frames))
        self._visual = Visual(tokens[0].numpy(), kept[0].numpy(), times, float(self.frames))
        self._forget()

    @torch.no_grad()
    def ask(self, prompt: str, further: bool) -> Reply:
        """Answer greedily; see `Answerer`."""
        layout, plan = self._plan.layout, self._plan
        parts, first = (layout.turn, self._position) if further else (layout.prompt, 0)
        seen = [] if further else [self._visual]
        piece = assemble(plan, parts, self._table, self._tokenizer, prompt, seen, first)
        length = len(self._rows) if further else 0
        room = plan.host.kv.tokens - length - len(piece.rows)  # as long as a bundle's context
        if room < 1:
            raise InputError(
                f"the turn has {len(piece.rows)} tokens and {length} are in the context of"
                f" {plan.host.kv.tokens}"
            )
        if not further:
            piece = self._keep_common(piece)
        ids = [self._feed(piece)]
        stops, most = set(plan.host.stop_ids), min(self._most, room)
        while ids[-1] not in stops and len(ids) < most:
            ids.append(self._feed_token(ids[-1]))
        said = ids[:-1] if ids[-1] in stops else ids
        if said is ids:
            self._feed_token(ids[-1])  # a further turn begins after the reply
        return Reply(self._tokenizer.decode(said, skip_special_tokens=True))

    def _keep_common(self, piece: Piece) -> Piece:
        """Cut the cache to the rows that `piece` begins with; the rest of `piece`."""
        most = min(len(self._rows), len(piece.rows) - 1)  # one row at least gives the scores
        differs = (self._rows[:most] != piece.rows[:most]).any(1)
        common = int(differs.argmax()) if differs.any() else most
        if common == 0:
            self._forget()
        elif common < len(self._rows):
            self._past.crop(common - len(self._rows))
        self._rows = self._rows[:common]
        return Piece(piece.rows[common:], piece.positions[common:])

    def _feed_token(self, token: int) -> int:
        position = np.asarray([self._position], np.int32)
        return self._feed(Piece(self._table[token][None], position))

    def _feed(self, piece: Piece) -> int:
        """Run rows; the most likely next token."""
        out = self._pieces.language_model(
            inputs_embeds=torch.from_numpy(piece.rows)[None],
            position_ids=torch.from_numpy(piece.positions)[None].long(),
            cache=self._past,
            use_cache=True,
        )
        self._past = out.cache
        self._rows = np.concatenate([self._rows, piece.rows])
        self._position = int(piece.positions[-1]) + 1
        last = out.last_hidden_state[:, -1]
        return int(torch.nn.functional.linear(last, self._pieces.head).argmax())

    def _forget(self) -> None:
        self._past, self._position, self._rows = None, 0, self._rows[:0]
