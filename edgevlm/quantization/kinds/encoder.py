"""An image encoder encodes the picture of a scene, its text encoder the questions about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from edgevlm.evaluation.examples import Example
from edgevlm.graphs.signals import encode
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.planning.encoder import make_plan
from edgevlm.quantization.calibrate import Presenter
from edgevlm.quantization.schemes import Schemes
from edgevlm.recipe import Recipe
from edgevlm.runtimes.loops import images

TEXTS = 4  # of a scene


def presenter(recipe: Recipe, checkpoint: Checkpoint, model: Any) -> Presenter:
    """Shows scenes to the static modules of `model`: some of their layers are parts of its own."""
    exact = replace(recipe, methods=(), quantize=Schemes(), calibrate=None)
    planned = make_plan(exact, checkpoint)
    parts, host = planned.parts(model), planned.plan.host
    tokenizer = checkpoint.tokenizer() if parts.text else None

    def show(example: Example) -> None:
        with torch.no_grad():
            for view in torch.from_numpy(images.views(example.frames, host.image)):
                encode(parts.encoder.modules, view[None], grid=parts.encoder.grid)
            for question in example.questions[:TEXTS] if tokenizer else ():
                read(question.prompt)

    def read(text: str) -> None:
        assert tokenizer is not None and parts.text is not None and host.text is not None
        ids = tokenizer.encode(text.lower() if host.text.lower_case else text).ids
        ids = [*ids[: host.text.tokens], *[host.text.pad_id] * (host.text.tokens - len(ids))]
        hidden = parts.text.table[np.array(ids)].unsqueeze(0)
        for module in parts.text.modules[:-1]:
            hidden = module(hidden)
        end = (torch.tensor([_last(ids, host.text.end_id)]),) if host.text.reads_end else ()
        parts.text.head(hidden, *end)

    modules = nn.ModuleList([*parts.encoder.modules, *(parts.text.modules if parts.text else ())])
    layers = [module for module in modules.modules() if isinstance(module, nn.Linear)]
    return Presenter(layers, show)


def _last(ids: list[int], end: int | None) -> int:
    """Where the text ends; the last token of one that was cut."""
    return ids.index(end) if end in ids else len(ids) - 1
