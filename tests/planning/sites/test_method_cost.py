"""What a method costs itself: counted on its graph, measured by running it."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.planning.sites import method_cost as module
from edgevlm.planning.sites.method_cost import method_cost, most_bytes
from edgevlm.recipe import Recipe


def test_bytes_are_those_alive_together() -> None:
    """a and b are needed for c; a is gone when d is made."""

    class Graph(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = torch.cat([x, x])  # 8 floats
            b = a.sum(0)  # 4
            c = a + b  # 8
            return torch.cat([c, c, c])  # 24

    program = torch.export.export(Graph(), (torch.zeros(1, 4),), strict=False)
    assert most_bytes(program) == 4 * (8 + 24)


def test_cost_of_methods(preset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens kept, more operators; signals of all kinds are made up; nothing kept is free."""
    ticks = count(step=0.002)  # two milliseconds from each reading of the clock to the next
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    recipe = Recipe(model=str(preset("tiny-llava-next")), tokens=8)
    checkpoint = find(recipe.model, None)

    def cost(**changes: Any) -> Any:
        return method_cost(make_plan(replace(recipe, **changes), checkpoint))

    few, more = cost(methods=("divprune",)), cost(methods=("divprune",), tokens=16)
    assert few.nodes < more.nodes
    assert 0 < few.bytes <= more.bytes
    assert few.ms == pytest.approx(2.0)
    assert cost(methods=("visionzip",)).nodes > cost(methods=("random",)).nodes
    assert cost(methods=("divprune:merge=mean,calibrate=size",)).nodes > few.nodes
    assert cost(tokens=None) is None
