"""Find a checkpoint and read it: safetensors and JSON only, no pickle, no code from the checkpoint.

A plan is compared with the headers of the weight files (`weights.matching`), so that what cannot
be exported is refused before weights are read, or fetched; without any weights it has the shapes of
the config. `fetched` is the checkpoint whose weights may be read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from tokenizers import Tokenizer

from edgevlm.errors import ModelError, PlanError
from edgevlm.models.documents import (
    check_no_pointer,
    check_processor,
    named_tokens,
    of_checkpoint,
    processor_numbers,
    read_json,
    reading_config,
    say_once,
)
from edgevlm.models.folder import auto_class
from edgevlm.models.hub import HubWeights
from edgevlm.models.quiet import quiet
from edgevlm.models.weights.headers import check_plain, first_layers
from edgevlm.models.weights.loading import built, cut, loaded, paged, untied
from edgevlm.models.weights.matching import Match, match
from edgevlm.models.weights.sources import (
    FolderWeights,
    NoWeights,
    Weights,
    largest_numbers,
    single_number,
)
from edgevlm.quantization.schemes import EXACT
from edgevlm.recipe import Recipe, spell_pair

MOST_HALF = 65504.0  # the largest number of float16


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that can be read; no weight is loaded yet.

    Attributes:
        model: As the user named it.
        revision: Commit or tag on a hub.
        folder: Where its files are.
        config: transformers' config.
        family: The family's module.
        weights: Where its weights are.
        layers: Layers of its language model that its config has, without others; None for all.
        all_layers: Whether layers of the encoder that give no features are used too, for signals.
    """

    model: str
    revision: str | None
    folder: Path
    config: Any
    family: ModuleType
    weights: Weights
    layers: int | None = None
    all_layers: bool = False

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture, which is the family's."""
        return str(self.config.model_type)

    @property
    def auto_class(self) -> str:
        """The class of transformers that builds the model."""
        return auto_class(self.family, self.config)

    @property
    def family_name(self) -> str:
        """What a plan and a manifest call the family."""
        return str(getattr(self.family, "shown", str)(self.model_type))

    @property
    def config_hash(self) -> str:
        """sha256 of config.json."""
        return hashlib.sha256((self.folder / "config.json").read_bytes()).hexdigest()

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer is."""
        return self.folder

    @property
    def contents(self) -> str:
        """A line that changes when a weight file does: names, sizes and times."""
        files = sorted(self.folder.glob("*.safetensors"))
        states = [(path, path.stat()) for path in files]
        return " ".join(f"{p.name}:{s.st_size}:{s.st_mtime_ns}" for p, s in states)

    def document(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder, or an empty one."""
        path = self.folder / name
        return read_json(path) if path.is_file() else {}

    def processor(self, of: str = "image") -> dict[str, Any]:
        """Numbers of the `image` or `video` processor, wherever the checkpoint keeps them.

        Raises:
            ModelError: If one of them has no meaning.
        """
        numbers = processor_numbers(self.document, of)
        check_processor(numbers, f"'{self.model}': the {of} processor's")
        return numbers

    def image_tokens(self) -> dict[str, str]:
        """Tokens that stand for images, where this checkpoint names its own, by their keys."""
        special = self.document("tokenizer_config.json")
        more = special.get("extra_special_tokens")
        return named_tokens((self.document("processor_config.json"), more, special))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of tokenizer.json.

        Raises:
            ModelError: If the file holds none.
        """
        path = self.tokenizer_folder / "tokenizer.json"
        with self._named():
            check_no_pointer(path)
        try:
            return Tokenizer.from_file(str(path))
        except Exception as cause:  # the library raises Exception itself
            name = path.relative_to(self.folder)
            raise ModelError(f"'{self.model}': {name} is not valid: {cause}") from cause

    def describe(self, recipe: Recipe) -> Any:
        """The family's description of this checkpoint for a recipe.

        Raises:
            ModelError: If the config lacks what the family reads.
            PlanError: If the family has no static form for what the recipe or the config asks.
        """
        with self._reading():
            numbers = self.processor() | self.image_tokens()
            if recipe.frames > 1:
                numbers["video_processor"] = self.processor("video")
            description = self.family.describe(self.config, numbers, recipe)
        image = description.image
        if recipe.size not in (None, (image.height, image.width)):
            raise PlanError(
                f"{self.model_type} reads pictures of {image.height}x{image.width} pixels alone,"
                f" got --size {spell_pair(recipe.size)}; leave it out"
            )
        return description

    def parts(self, model: Any, description: Any) -> Any:
        """The family's static modules over a model of this checkpoint.

        Raises:
            ModelError: If a number of the config has no meaning to the family.
            PlanError: If the family has no static form of the model.
        """
        with self._reading():
            return self.family.parts(model, description)

    @property
    def remote(self) -> HubWeights | None:
        """Its weights, where they are not in the folder but on a hub."""
        return self.weights if isinstance(self.weights, HubWeights) else None

    @property
    def weightless(self) -> bool:
        """Whether it has no weights, so that the config alone says what they would be."""
        return isinstance(self.weights, NoWeights)

    def cut(self, layers: int | None) -> Checkpoint:
        """This checkpoint with the first layers of its language model alone; all for None.

        Raises:
            PlanError: If it has fewer.
        """
        if layers in (None, self.config.get_text_config().num_hidden_layers):
            return self
        return replace(self, config=cut(self.config, layers), layers=layers)

    def notes(self, recipe: Recipe) -> tuple[str, ...]:
        """What a reader of the recipe's plan must know: a trial, or that there are no weights."""
        trial = (recipe.trial,) if recipe.trial else ()
        if not isinstance(self.weights, NoWeights):
            return trial
        where = f" {self.weights.reason}" if self.weights.reason else ""
        plain = set(recipe.quantize.names) == {EXACT}
        numbers = "float32" if plain else str(recipe.quantize)
        shapes = f"no weights{where}: bytes are those of the config's shapes in {numbers}"
        return (*trial, shapes)

    def number(self, name: str) -> float:
        """A weight that is one number, of which the rest of the file is not read.

        Raises:
            ModelError: If there is none of this name, or it is no number.
        """
        with self._named():
            return single_number(self.weights, name)

    def before_fetching(self) -> Checkpoint:
        """This checkpoint as far as it can be planned without downloads that nobody asked for."""
        if self.remote is None or self.remote.ranged:
            return self
        return replace(self, weights=NoWeights("", ""))

    def fetched(self) -> Checkpoint:
        """This checkpoint with weights that may be read; what is on a hub is fetched.

        Raises:
            ModelError: If there are none.
        """
        if isinstance(self.weights, FolderWeights) and self.weights.whole:
            return self
        with self._named():
            return replace(self, weights=self.weights.fetch())

    def empty_model(self) -> Any:
        """The model without memory for weights, for counting; its files have its weights.

        Raises:
            ModelError: If the config describes no model, or the weight files another one.
        """
        with self._named():
            model = built(self.auto_class, self.config)
            if not self.weightless:
                both = self._match.both
                if both and not self.weights.same(*both):
                    model = built(self.auto_class, untied(self.config))
        return model.eval()

    def check_numbers(self, half: str | None = None) -> None:
        """Refuse weights that no arithmetic can follow; reads all of them, which must be fetched.

        Args:
            half: A scheme that stores numbers in float16, or None.

        Raises:
            ModelError: If a weight is infinite or no number.
            PlanError: If one is larger than float16 holds.
        """
        sources = self._match.sources
        tops = largest_numbers(self.weights.fetch(), self.contents)
        for name in sorted(set(sources.values())):
            self.check_top(f"weight '{name}'", tops.get(name, 0.0), half)

    def check_top(self, weight: str, top: float, half: str | None) -> None:
        """Refuse a weight by its largest magnitude; see `check_numbers`."""
        if not math.isfinite(top):
            raise ModelError(
                f"'{self.model}': {weight} holds {top}, as a cast to float16 makes it; take the"
                " checkpoint from before that cast"
            )
        if half and top > MOST_HALF:
            raise PlanError(
                f"{weight} holds {top:,.0f}, and float16, in which scheme '{half}' stores it, ends"
                f" at {MOST_HALF:,.0f}; choose a scheme in float32"
            )

    @cached_property
    def _match(self) -> Match:
        """The tensors of the files as weights of the model, for questions about them."""
        return self._matched()

    def _matched(self) -> Match:
        """The tensors of the files as weights of a model of its own.

        Raises:
            ModelError: If they are not its weights.
        """
        with self._named():
            headers = self.weights.headers
            check_plain(headers)
            kind, left_out = type(built(self.auto_class, self.config)), ()
            with self._reading():
                if hasattr(self.family, "left_out"):
                    left_out = self.family.left_out(self.config, self.all_layers)
                if self.layers is not None and hasattr(self.family, "side_by_side"):
                    headers = first_layers(headers, self.family.side_by_side(self.config))
                found = match(kind, self.config, headers, left_out)
        if found.unused and self.layers is None:
            say_once(
                f"'{self.model}': its weights have tensors that are in no part of the model and are"
                f" left out ({len(found.unused)}, the first is '{found.unused[0]}')"
            )
        return found

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the checkpoint's files say whose files they are."""
        try:
            yield
        except ModelError as cause:
            raise of_checkpoint(self.model, cause) from cause

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A family reads the config, and imports from transformers, inside the body."""
        with self._named(), reading_config(self.config), quiet():
            yield

    def load_model(self, kept_bytes: int | None = None) -> Any:
        """The model with float32 weights.

        Args:
            kept_bytes: Bytes of weights in memory; the others are read when an operator takes
                them. None has all in memory.

        Raises:
            ModelError: If there are no weights, a file is damaged, weights are missing, or not
                finite.
        """
        checkpoint = self.fetched()
        checkpoint.check_numbers()
        with self._named():
            weights, model = checkpoint.weights.fetch(), None
            if kept_bytes is not None:
                found = checkpoint._matched()
                tied = found.both is not None and weights.same(*found.both)
                model = paged(found, weights, tied, kept_bytes)
            if model is None:
                model = loaded(checkpoint._match, self.config, weights)
        return model
