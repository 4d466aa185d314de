"""A diffusers pipeline as a checkpoint: what a plan and an export ask of it.

A pipeline's own defaults (steps, guidance, frames, size) are those of its class in diffusers, and
those of its folder where it has a generation_config.json with the same names.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgevlm.errors import ModelError, PlanError
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.documents import check_config, of_checkpoint, read_json
from edgevlm.models.pipelines.components import Component, PipelineModel, component
from edgevlm.models.pipelines.folder import INDEX, STEMS, component_config, family_of
from edgevlm.models.weights.sources import FolderWeights, NoWeights, Weights, largest_numbers
from edgevlm.recipe import Recipe

DEFAULTS = "generation_config.json"
# What a recipe may leave to the pipeline, by its name in diffusers.
NAMES = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "fps")


@dataclass(frozen=True)
class PipelineCheckpoint(Checkpoint):
    """A pipeline's folder that can be read; no weight is loaded yet.

    Attributes:
        name: The family's name.
        components: Those with weights, by their names.
    """

    name: str = ""
    components: Mapping[str, Component] = field(default_factory=dict)

    @property
    def model_type(self) -> str:
        """The family's name."""
        return self.name

    @property
    def family_name(self) -> str:
        """What a plan and a manifest call the family."""
        return self.name

    @property
    def config_hash(self) -> str:
        """sha256 of model_index.json and of the components' configs."""
        files = [self.folder / INDEX]
        files += [self.folder / name / "config.json" for name in self.components]
        files.append(self.folder / "scheduler" / "scheduler_config.json")
        return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()

    @property
    def contents(self) -> str:
        """A line that changes when a weight file does: names, sizes and times."""
        files = sorted(self.folder.glob("*/*.safetensors"))
        states = [(path, path.stat()) for path in files]
        return " ".join(f"{p.parent.name}/{p.name}:{s.st_size}:{s.st_mtime_ns}" for p, s in states)

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer is."""
        return self.folder / "tokenizer"

    def defaults(self) -> dict[str, Any]:
        """What a recipe leaves to the pipeline, by its names in diffusers.

        Raises:
            ModelError: If the folder's own are no numbers.
        """
        import diffusers

        call = getattr(diffusers, self.family.PIPELINE).__call__
        signature = inspect.signature(call).parameters
        found = {name: signature[name].default for name in NAMES if name in signature}
        path = self.folder / DEFAULTS
        if path.is_file():
            with self._named():
                document = read_json(path)
                check_config(document, DEFAULTS)
            own = {name: document[name] for name in NAMES if name in document}
            for name, value in own.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                    raise ModelError(f"'{self.model}': {DEFAULTS}: {name} is no number above 0")
            found |= own
        return found

    def document(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder, by its path in it, or an empty one."""
        path = self.folder / name
        return read_json(path) if path.is_file() else {}

    def describe(self, recipe: Recipe) -> Any:
        """The family's description of this pipeline for a recipe."""
        configs = {name: each.config for name, each in self.components.items()}
        with self._reading():
            return self.family.describe(configs, self.defaults(), recipe)

    @property
    def weightless(self) -> bool:
        """Whether a component has no weights, so that the configs alone say what they would be."""
        return isinstance(self.weights, NoWeights)

    def cut(self, layers: int | None) -> Checkpoint:
        """This pipeline; `--layers` has no meaning here.

        Raises:
            PlanError: If there are to be fewer layers.
        """
        if layers is None:
            return self
        raise PlanError("--layers is for language models; a denoiser is exported whole")

    def before_fetching(self) -> Checkpoint:
        """This pipeline, which is in a folder."""
        return self

    def fetched(self) -> Checkpoint:
        """This pipeline with weights that may be read.

        Raises:
            ModelError: If there are none.
        """
        with self._named():
            self.weights.fetch()
        whole = {n: replace(c, weights=c.weights.fetch()) for n, c in self.components.items()}
        return replace(self, components=whole)

    def empty_model(self) -> Any:
        """The model without memory for weights; its files have its weights.

        Raises:
            ModelError: If a config describes no model, or the files are of another one.
        """
        with self._named():
            modules = {name: each.empty() for name, each in self.components.items()}
            if not self.weightless:
                for each in self.components.values():
                    _ = each.headers
        return self._complete(modules)

    def check_numbers(self, half: str | None = None) -> None:
        """Refuse weights that no arithmetic can follow; see `Checkpoint.check_numbers`."""
        for part in self.components.values():
            tops = largest_numbers(part.weights.fetch(), self.contents)
            for name in sorted(part.headers):
                self.check_top(f"weight '{name}' of {part.name}", tops.get(name, 0.0), half)

    def load_model(self, kept_bytes: int | None = None) -> Any:
        """The model with float32 weights, of which `kept_bytes` are in memory; all for None."""
        self.check_numbers()
        whole = self.fetched()
        assert isinstance(whole, PipelineCheckpoint)
        most = 2**62 if kept_bytes is None else kept_bytes
        with self._named():
            modules = {name: each.paged(most) for name, each in whole.components.items()}
        return self._complete(modules)

    def _complete(self, modules: Mapping[str, Any]) -> Any:
        model = PipelineModel(modules)
        with self._reading():
            self.family.complete(model)
        return model


def open_pipeline(model: str, revision: str | None, folder: Path) -> PipelineCheckpoint:
    """The pipeline of a folder that has a model_index.json.

    Raises:
        ModelError: If it is of no known family, or lacks a component.
    """
    try:
        index = read_json(folder / INDEX)
        name, family = family_of(index)
        family.check(index)
        components = {}
        for part, (kind, left_out) in family.COMPONENTS.items():
            config = component_config(folder, index, part, kind)
            stem = STEMS[kind.partition(".")[0]]
            components[part] = component(folder, part, kind, config, left_out, stem)
        if not (folder / "scheduler" / "scheduler_config.json").is_file():
            raise ModelError("it has no scheduler/scheduler_config.json; save the whole pipeline")
        if not (folder / "tokenizer" / "tokenizer.json").is_file():
            raise ModelError("it has no tokenizer/tokenizer.json; save a fast tokenizer into it")
    except ModelError as cause:
        raise of_checkpoint(model, cause) from cause
    lacking = [part for part, each in components.items() if not each.has_weights]
    weights: Weights = FolderWeights(folder)
    if lacking:
        reason = f"of {lacking[0]}"
        refusal = f"{lacking[0]} has no safetensors weights, which a plan does without"
        weights = NoWeights(reason, f"{refusal} and nothing else; put them into its folder")
    return PipelineCheckpoint(
        model, revision, folder, index, family, weights, name=name, components=components
    )
