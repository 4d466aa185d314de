"""The search for VFlowOpt's options: it takes the one that changes the model's last state least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from edgevlm.compress.tokens.vflowopt import Method, _draw, _most_times, calibrate
from edgevlm.errors import PlanError
from edgevlm.graphs.signals import method_inputs, observe
from edgevlm.graphs.visual_shape import VisualShape


@dataclass(frozen=True)
class OnePicture:
    """A picture whose last state tells whether the kept tokens are the wanted ones."""

    views: Tensor
    wanted: list[int]

    def last_state(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Share of the wanted tokens, as a direction."""
        angle = torch.tensor(1.0 - len({*positions[0].tolist()} & {*self.wanted}) / 9)
        return torch.stack([angle.cos(), angle.sin()])


@dataclass(frozen=True)
class OneSubject:
    """A tower and its only picture."""

    parts: Any
    image: Any
    shape: VisualShape
    picture: OnePicture

    @property
    def encoder(self) -> Any:
        """The tower."""
        return self.parts.encoder

    def pictures(self) -> Iterator[OnePicture]:
        """The picture."""
        yield self.picture


@pytest.fixture(scope="module")
def subject(preset: Any) -> OneSubject:
    """A tiny LLaVA-OneVision and 8-bit noise of two loudnesses."""
    from edgevlm.models.find import find
    from edgevlm.planning.plan import make_plan
    from edgevlm.recipe import Recipe

    checkpoint = find(str(preset("tiny-llava-onevision")))
    planned = make_plan(Recipe(model=checkpoint.model), checkpoint)
    image, parts = planned.plan.host.image, planned.parts(checkpoint.load_model())
    noise = torch.rand(1, 3, image.height, image.width, generator=torch.manual_seed(0))
    noise[..., image.width // 2 :] = noise[..., image.width // 2 :].round(decimals=1)
    mean, std = (torch.tensor(three)[:, None, None] for three in (image.mean, image.std))
    views = ((noise * 255).round() / 255 - mean) / std
    return OneSubject(parts, image, planned.description.shape, OnePicture(views, []))


def kept(subject: OneSubject, method: Method) -> list[int]:
    """Positions that the graphs with these options keep."""
    names = method.signals
    parts = observe(subject.parts, names, method.global_times, subject.image)
    features, signals = method_inputs(parts, names, subject.picture.views)
    return method(features, shape=subject.shape, **signals)[1][0].tolist()


@torch.no_grad()
def test_the_options_whose_tokens_are_wanted_are_found(subject: OneSubject) -> None:
    """For each of the first draws: a picture that wants its tokens finds them again."""
    most = _most_times(subject, subject.picture)
    draws, found = list(_draw(subject.shape, 9, most, 6, 0)), set()
    assert (draws[0].global_times, draws[0].alpha, draws[0].cell) == (0.0, 0.0, None)
    for method in draws:
        wanted = kept(subject, method)
        found.add(tuple(wanted))
        asked = replace(subject, picture=replace(subject.picture, wanted=wanted))
        result = calibrate(asked, lambda _: None, tokens=9, trials=6)
        assert kept(subject, Method(9, **result.options)) == wanted  # type: ignore[arg-type]
        assert result.measured["cosine"] == pytest.approx(1.0)
        assert result.measured["pictures"] == 1
        assert result.measured["t_most"] > 1
    assert len(found) > 1


def test_cells_are_drawn_for_tiles_alone() -> None:
    """Of sides from 3 to 24; those that make more cells than tokens are left out."""
    tiled = VisualShape(((14, 14), (14, 28)), 8, (1, 2), "first")
    for tokens in (9, 60):
        draws = list(_draw(tiled, tokens, 2.0, 50, 0))[1:]
        assert all(3 <= method.cell <= 24 for method in draws)  # type: ignore[operator]
        assert all(method.plan(tiled) == tokens for method in draws)
        assert {method.alpha == 0 for method in draws} == {True, False}
        assert len(draws) < 49 or tokens == 60
    assert all(m.cell is None for m in _draw(VisualShape(((14, 14),), 8), 9, 2.0, 9, 0))


def test_refusals(subject: OneSubject) -> None:
    """No trial, and more tokens than there are."""
    for options, got in (({"trials": 0}, "trials=0"), ({"seed": "x"}, "seed=x")):
        with pytest.raises(PlanError, match=rf"^vflowopt: got {got}, expected an integer from "):
            calibrate(subject, lambda _: None, tokens=9, **options)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"^vflowopt: got tokens=500, expected 1 to 196"):
        calibrate(subject, lambda _: None, tokens=500)
