"""What each method promises, taken from the registry: most of it of site `tokens`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress.shared import contract
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.registry import METHODS
from edgevlm.runtimes.loops.images.picking import FramesMethod

SHAPE = VisualShape(((8, 8),), 16)
TILES = VisualShape(((4, 8), (4, 4), (2, 8)), 16)
TILED = VisualShape(((4, 4),) * 4, 16, (1, 3), "first")  # a thumbnail and three tiles
CLIP = VisualShape(((4, 4),) * 4, 16, frames=4)
STILL = "works over the frames of a clip, got a still picture"
FIRST_WHOLE = "the first of the 4 frames stays whole"
ANY = 0
# What a method must refuse, and why: method, shape and tokens, or ANY number of them below N.
REFUSALS = {
    ("globalcom2", SHAPE, ANY): "the picture has no tiles beside it",
    ("globalcom2", TILES, ANY): "the picture has no tiles beside it",
    ("identity", SHAPE, ANY): "identity keeps all of them",
    ("identity", TILES, ANY): "identity keeps all of them",
    ("identity", TILED, ANY): "identity keeps all of them",
    ("tomesd", TILES, 3): "no cell of side 5 fits a grid 4x8",
}
REFUSALS |= {(name, CLIP, few): FIRST_WHOLE for name in ("evs", "timechat") for few in (1, 2)}
REFUSALS |= {("streamingtom", CLIP, few): "expected at least one each" for few in (1, 2)}
CONTRACTS: dict[str, Any] = {
    "input": (FramesMethod,),
    "vision": (
        contract.VisionMethod,
        contract.LeavingMethod,
        contract.JoiningMethod,
        contract.FramesMergingMethod,
    ),
    "tokens": (contract.TokensMethod,),
    "decoder": (contract.DecoderMethod,),
}
methods = pytest.mark.parametrize("name", METHODS.names("tokens"))
FILES = [(name, site) for name in METHODS.names() for site in METHODS.sites_of(name)]
files = pytest.mark.parametrize(("name", "site"), FILES, ids=["-".join(f) for f in FILES])


def clip_of(name: str) -> VisualShape | None:
    """A clip for a method that works over frames, which refuses a picture whatever K is."""
    try:
        METHODS.load(name, "tokens").Method(tokens=40).plan(SHAPE)
    except PlanError as reason:
        return CLIP if STILL in str(reason) else None
    return None


def make(name: str, tokens: int | None, shape: VisualShape | None = None) -> Any:
    """The method; a skip where it must refuse, and a failure where it refuses anything else."""
    method, clip = METHODS.load(name, "tokens").Method(tokens=tokens), clip_of(name)
    shape = shape or clip or SHAPE
    reason = STILL if clip and shape.frames == 1 else None
    if reason is None and tokens not in (None, shape.tokens):
        reason = REFUSALS.get((name, shape, tokens), REFUSALS.get((name, shape, ANY)))
    if reason is None:
        method.plan(shape)
        return method
    with pytest.raises(PlanError, match=f"^{name}: .*{re.escape(reason)}"):
        method.plan(shape)
    pytest.skip(f"{name}: {reason}")


def signals(method: Any, zero: bool = False) -> list[Tensor]:
    """What the method asks of the encoder, for 64 tokens: attention adds up to one."""
    generator = torch.Generator().manual_seed(1)
    tensors = []
    for name in method.signals:
        shape = (1, 64, 8) if name in ("keys", "flat_keys", "hidden") else (1, 64)
        drawn = torch.randn(shape, generator=generator)
        tensors.append(
            torch.zeros(shape) if zero else drawn if len(shape) == 3 else drawn.softmax(-1)
        )
    return tensors


def call(
    method: Any, features: Tensor, shape: VisualShape | None = None, zero: bool = False
) -> Any:
    """The method with the signals that it asks for."""
    named = dict(zip(method.signals, signals(method, zero), strict=True))
    return method(features, shape=shape, **named)


def check_positions(positions: Tensor, kept: int, total: int) -> None:
    """Positions are i32 [1, K], in range, distinct and ascending."""
    assert positions.dtype == torch.int32
    assert positions.shape == (1, kept)
    assert 0 <= int(positions.min()) <= int(positions.max()) < total
    assert bool((positions.diff() > 0).all())


@files
def test_module_says_what_it_is(name: str, site: str) -> None:
    """`edgevlm methods` prints these lines."""
    module = METHODS.load(name, site)
    for text in (module.SOURCE, module.SUMMARY, module.FORMULA, module.STATIC, module.DIFFERS):
        assert isinstance(text, str)
        assert "\n" not in text
    assert module.SUMMARY
    assert module.DIFFERS
    assert module.COMPARED in contract.COMPARISONS


@files
def test_method_keeps_the_contract_of_its_site(name: str, site: str) -> None:
    """The class derives from one of the site's contracts."""
    method = METHODS.load(name, site).Method
    assert set(CONTRACTS[site]) & set(method.__mro__)


def test_no_method_imports_another() -> None:
    """A method file imports what is shared, and nothing of its neighbours."""
    sites = "|".join(METHODS.sites())
    for name, site in FILES:
        text = Path(METHODS.load(name, site).__file__ or "").read_text()
        assert not re.search(rf"edgevlm\.compress(\.({sites})\b| import)", text), (name, site)


@methods
@pytest.mark.parametrize("tokens", [None, 64])
def test_zero_compression_is_identity(name: str, tokens: int | None, features: Tensor) -> None:
    """The same tensor comes back, not a copy."""
    method, shape = make(name, tokens), clip_of(name) or SHAPE
    assert method.plan(shape) == 64
    kept, positions = call(method, features, shape)
    assert kept is features
    assert positions.tolist() == [list(range(64))]


@methods
@pytest.mark.parametrize("tokens", [1, 2, 16, 31, 63])
def test_shape_law(name: str, tokens: int, features: Tensor) -> None:
    """What `plan` says is what comes out."""
    method, clip = make(name, tokens), clip_of(name)
    assert method.plan(clip or SHAPE) == tokens
    kept, positions = call(method, features, clip)
    assert kept.shape == (1, tokens, 16)
    assert kept.dtype == torch.float32
    assert bool(torch.isfinite(kept).all())
    check_positions(positions, tokens, 64)


@methods
@pytest.mark.parametrize("tokens", [3, 20, 50])
def test_shape_law_with_tiles(name: str, tokens: int, features: Tensor) -> None:
    """Grids of different sizes."""
    method = make(name, tokens, TILES)
    assert method.plan(TILES) == tokens
    kept, positions = call(method, features, TILES)
    assert kept.shape == (1, tokens, 16)
    check_positions(positions, tokens, 64)


@methods
@pytest.mark.parametrize("tokens", [33, pytest.param(4, marks=pytest.mark.slow)])
def test_a_tiled_picture_in_onnx(
    name: str, tokens: int, features: Tensor, trace: Any, engine: Any
) -> None:
    """A thumbnail and its tiles: as many as planned, and the same in ONNX Runtime."""
    method = make(name, tokens, TILED)
    asked = signals(method)

    def named(features: Tensor, *asked: Tensor) -> Any:
        return method(features, shape=TILED, **dict(zip(method.signals, asked, strict=True)))

    expected, positions = named(features, *asked)
    check_positions(positions, tokens, 64)
    kept, kept_positions = engine(trace(named, features, *asked))(features, *asked)
    np.testing.assert_array_equal(kept_positions, positions.numpy())
    np.testing.assert_allclose(kept, expected.numpy(), rtol=0, atol=1e-5)


@methods
def test_equal_tokens_are_no_trouble(name: str) -> None:
    """A blank page: all tokens are zero. Nothing is NaN and positions still differ."""
    kept, positions = call(make(name, 24), torch.zeros(1, 64, 16), clip_of(name), zero=True)
    assert kept.tolist() == torch.zeros(1, 24, 16).tolist()
    check_positions(positions, 24, 64)


@methods
@pytest.mark.parametrize("tokens", [0, -1, 65])
def test_impossible_budget(name: str, tokens: int) -> None:
    """One line: the method, what was got, what was expected, what to do."""
    module = METHODS.load(name, "tokens")
    with pytest.raises(PlanError, match=rf"^{name}: got tokens={tokens}, expected .*64.*; choose "):
        module.Method(tokens=tokens).plan(clip_of(name) or SHAPE)


@methods
def test_unknown_option(name: str) -> None:
    """Options are keywords, and a wrong one is Python's own error."""
    with pytest.raises(TypeError, match="nonsense"):
        METHODS.load(name, "tokens").Method(tokens=16, nonsense=1)
    with pytest.raises(TypeError):
        METHODS.load(name, "tokens").Method(16, 1)


@methods
@pytest.mark.parametrize("tokens", [24, None])
def test_exports_and_onnx_agrees(
    name: str, tokens: int | None, features: Tensor, trace: Any, engine: Any
) -> None:
    """The graph is static, and ONNX Runtime gives the same tokens at the same positions."""
    method, clip = make(name, tokens), clip_of(name)
    asked = signals(method)

    def named(features: Tensor, *asked: Tensor) -> Any:
        return method(features, shape=clip, **dict(zip(method.signals, asked, strict=True)))

    program = trace(named, torch.zeros_like(features), *map(torch.zeros_like, asked))
    expected, positions = named(features, *asked)
    kept, kept_positions = engine(program)(features, *asked)
    assert kept_positions.dtype == np.int32
    np.testing.assert_array_equal(kept_positions, positions.numpy())
    np.testing.assert_allclose(kept, expected.numpy(), rtol=0, atol=1e-5)
