"""A component of a diffusers pipeline as a module: empty, or with weights that stay in their files.

Names of tensors are those of the module's state, as diffusers saves it; transformers' components
are matched as checkpoints of transformers are (`weights.matching`).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgevlm.errors import ModelError
from edgevlm.libraries import first_line
from edgevlm.models.quiet import quiet
from edgevlm.models.weights.headers import Header, check_plain
from edgevlm.models.weights.loading import paged
from edgevlm.models.weights.matching import Match, match
from edgevlm.models.weights.paging import FileWeight, Kept, replace_parameters
from edgevlm.models.weights.sources import FolderWeights


@dataclass(frozen=True)
class Component:
    """A component whose weights are not read yet.

    Attributes:
        name: Its folder in the pipeline's.
        kind: `LIBRARY.CLASS`.
        config: Its config.json.
        weights: Its weight files.
        left_out: Prefixes of weights that no bundle uses.
    """

    name: str
    kind: str
    config: dict[str, Any]
    weights: FolderWeights
    left_out: tuple[str, ...] = ()

    @property
    def has_weights(self) -> bool:
        """Whether its folder has weight files."""
        return any(path.is_file() for path in self.weights.paths)

    def empty(self) -> Any:
        """The module on the meta device.

        Raises:
            ModelError: If its config makes none.
        """
        library, _, name = self.kind.partition(".")
        made_by = getattr(importlib.import_module(library), name)
        with self._named(), quiet(), torch.device("meta"):
            try:
                if library == "transformers":
                    module = made_by(self._transformers_config)
                else:
                    module = made_by.from_config(self.config)
            except Exception as cause:  # sizes that do not go together raise anything
                raise ModelError(f"config.json makes no model: {first_line(cause)}") from cause
        return module.eval().requires_grad_(False)

    def paged(self, kept_bytes: int) -> Any:
        """The module, with weights that stay in their files.

        Raises:
            ModelError: If the files are not those of the module.
        """
        with self._named():
            if self.kind.startswith("transformers."):
                whole = self._match.both is not None and self.weights.same(*self._match.both)
                model = paged(self._matched(), self.weights, whole, kept_bytes)
                if model is None:
                    raise ModelError("its weights are packed in a way that is not read here")
                return model
            module, headers, kept = self.empty(), self.headers, Kept(kept_bytes)
            of_name = {
                name: FileWeight.of(self.weights, headers[name], kept)
                for name, _ in module.named_parameters()
                if name in headers
            }
            replace_parameters(module, of_name)
        return module.eval().requires_grad_(False)

    @cached_property
    def headers(self) -> Mapping[str, Header]:
        """Headers of all tensors, which are those of the module.

        Raises:
            ModelError: If one is missing, too many or of another shape.
        """
        with self._named():
            headers = self.weights.headers
            check_plain(headers)
            if self.kind.startswith("transformers."):
                return {name: headers[name] for name in set(self._match.sources.values())}
            module = self.empty()
            wanted = dict(module.named_parameters())
            ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or []
            used = {n: h for n, h in headers.items() if not n.startswith(self.left_out)}
            for name, header in used.items():
                if name not in wanted and not any(part in name for part in ignored):
                    raise ModelError(f"tensor '{name}' has no place in the model of config.json")
                if name in wanted and header.shape != tuple(wanted[name].shape):
                    shape = list(wanted[name].shape)
                    raise ModelError(
                        f"weight '{name}' is {list(header.shape)} in the file and {shape} by"
                        " config.json; take both from one place"
                    )
            missing = [
                name
                for name in wanted
                if name not in headers and not name.startswith(self.left_out)
            ]
            if missing:
                raise ModelError(f"it lacks {len(missing)} weights, the first is '{missing[0]}'")
            return {name: header for name, header in used.items() if name in wanted}

    @cached_property
    def _match(self) -> Match:
        return self._matched()

    def _matched(self) -> Match:
        library, _, name = self.kind.partition(".")
        kind = getattr(importlib.import_module(library), name)
        with quiet():
            return match(kind, self._transformers_config, self.weights.headers, self.left_out)

    @property
    def _transformers_config(self) -> Any:
        from transformers import AutoConfig

        document = {k: v for k, v in self.config.items() if not k.startswith("_")}
        name = document.pop("model_type", None)
        return AutoConfig.for_model(name, **document)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors name the component."""
        try:
            yield
        except ModelError as cause:
            line = str(cause)
            if line.startswith(f"{self.name}: "):
                raise
            raise ModelError(f"{self.name}: {line}") from cause


def component(
    folder: Path, name: str, kind: str, config: dict[str, Any], left_out: tuple[str, ...], stem: str
) -> Component:
    """A component of a pipeline's folder."""
    return Component(name, kind, config, FolderWeights(folder / name, stem=stem), left_out)


class PipelineModel(nn.Module):
    """The components of a pipeline that have weights, by their names."""

    def __init__(self, components: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in components.items():
            self.add_module(name, module)
