"""A tiny model of transformers, driven as originals drive theirs, and the modules of an export."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Subject:
    """A model with seeded random weights and the plan of a recipe.

    Attributes:
        model: transformers' own.
        planned: Of the recipe.
        pixels: Views of a drawn picture or clip, f32 [P, 3, h_px, w_px].
    """

    model: Any
    planned: Any
    pixels: Tensor

    @torch.no_grad()
    def exported(self) -> tuple[Tensor, list[int]]:
        """Visual tokens [K, C] and kept positions: the modules that are traced, block by block."""
        parts, outputs = self.planned.parts(self.model), list[dict[str, Tensor]]()
        for view in self.pixels:
            values = {"pixel_values": view[None]}
            for block in self._blocks("vision"):
                self._run(block, parts, values, chained=True)
            outputs.append(values)
        (reduce,) = self._blocks("reduce")
        names = [tensor.name for tensor in reduce.functions[0].inputs]
        joined = {name: torch.cat([view[name] for view in outputs], 1) for name in names}
        self._run(reduce, parts, joined)
        return joined["visual_tokens"][0], joined["kept_positions"][0].tolist()

    @torch.no_grad()
    def tower(self) -> Any:
        """What transformers' tower gives for the views: hidden_states and attentions."""
        tower = self.model.model.vision_tower
        before = tower.config._attn_implementation
        tower.set_attn_implementation("eager")
        try:
            return tower(self.pixels, output_hidden_states=True, output_attentions=True)
        finally:
            tower.set_attn_implementation(before)

    def packed(self, values: Tensor) -> Tensor:
        """Values of each view [P, N] in the family's order [P*N]: all tiles are one grid."""
        base, rest = values[0], values[1:]
        if not len(rest) or self.planned.plan.host.image.frames > 1:
            return values.flatten()
        side = math.isqrt(len(base))
        grid = rest.reshape(*self.planned.description.shape.tiles, side, side).transpose(1, 2)
        return torch.cat([base, grid.flatten()])

    def _blocks(self, stage: str) -> list[Any]:
        return [block for block in self.planned.plan.blocks if block.stage == stage]

    def _run(
        self, block: Any, parts: Any, values: dict[str, Tensor], chained: bool = False
    ) -> None:
        """Run the only function of a block; its outputs join `values`."""
        (function,) = block.functions
        made = self.planned.build(block, parts)(*(values[t.name] for t in function.inputs))
        tensors = made if isinstance(made, tuple) else (made,)
        for tensor, value in zip(function.outputs, tensors, strict=True):
            values[tensor.name.removesuffix("_out") if chained else tensor.name] = value


@pytest.fixture(scope="session")
def subject(preset: Any) -> Callable[..., Subject]:
    """`subject("tiny-llava-next", "fastervlm", 20, tiles=(1, 2))`: a recipe's model and picture."""
    pytest.importorskip("transformers")
    from edgevlm.models.checkpoint import find
    from edgevlm.planning.plan import make_plan
    from edgevlm.recipe import Recipe

    models: dict[str, Any] = {}

    def make(name: str, method: str, tokens: int, **options: Any) -> Subject:
        path = str(preset(name))
        checkpoint = find(path)
        recipe = Recipe(model=path, tokens=tokens, methods=(method,), **options)
        planned = make_plan(recipe, checkpoint)
        if name not in models:
            models[name] = checkpoint.load_model()
        return Subject(models[name], planned, picture(planned.plan.host.image))

    return make


def picture(image: Any) -> Tensor:
    """Views of 8-bit noise over flat fields, so that patches differ in entropy: [P, 3, h, w]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(image.views, 3, 7, 7, generator=generator)
    flat = torch.nn.functional.interpolate(coarse, (image.height, image.width))
    noise = torch.rand(flat.shape, generator=generator) - 0.5
    loud = torch.nn.functional.interpolate(coarse[:, :1].flip(2), (image.height, image.width))
    values = ((flat + noise * loud.round()).clamp(0, 1) * 255).round() / 255
    mean, std = (torch.tensor(three)[:, None, None] for three in (image.mean, image.std))
    return (values - mean) / std
