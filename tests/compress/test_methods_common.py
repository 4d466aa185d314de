"""What each method of site `tokens` promises, taken from the registry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.errors import PlanError
from edgevlm.graphs.selection import VisualShape
from edgevlm.registry import METHODS, sites_of

SHAPE = VisualShape(((8, 8),), 16)
TILES = VisualShape(((4, 8), (4, 4), (2, 8)), 16)
TILED = VisualShape(((4, 4),) * 4, 16, (1, 3), "first")  # a thumbnail and three tiles
methods = pytest.mark.parametrize(
    "name", [name for name in METHODS.names() if "tokens" in sites_of(METHODS.load(name))]
)


def make(name: str, tokens: int | None, shape: VisualShape = SHAPE) -> Any:
    """The method, or a skip with its own reason if it cannot keep `tokens`."""
    module = METHODS.load(name)
    method = module.Method(tokens=tokens)
    try:
        method.plan(shape)
    except PlanError as reason:
        pytest.skip(str(reason))
    return method


def signals(method: Any, zero: bool = False) -> list[Tensor]:
    """What the method asks of the encoder, for 64 tokens: attention adds up to one."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for name in method.signals:
        shape = (1, 64, 8) if name in ("keys", "flat_keys") else (1, 64)
        drawn = torch.randn(shape, generator=generator)
        found.append(
            torch.zeros(shape) if zero else drawn if len(shape) == 3 else drawn.softmax(-1)
        )
    return found


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


@pytest.mark.parametrize("name", METHODS.names())
def test_module_says_what_it_is(name: str) -> None:
    """`edgevlm methods` prints these lines."""
    module = METHODS.load(name)
    assert sites_of(module)
    for text in (module.SOURCE, module.SUMMARY, module.DIFFERS):
        assert isinstance(text, str)
        assert "\n" not in text
    assert module.SUMMARY
    assert module.DIFFERS


@methods
@pytest.mark.parametrize("tokens", [None, 64])
def test_zero_compression_is_identity(name: str, tokens: int | None, features: Tensor) -> None:
    """The same tensor comes back, not a copy."""
    method = make(name, tokens)
    assert method.plan(SHAPE) == 64
    kept, positions = call(method, features, SHAPE)
    assert kept is features
    assert positions.tolist() == [list(range(64))]


@methods
@pytest.mark.parametrize("tokens", [1, 2, 16, 31, 63])
def test_shape_law(name: str, tokens: int, features: Tensor) -> None:
    """What `plan` says is what comes out."""
    method = make(name, tokens)
    assert method.plan(SHAPE) == tokens
    kept, positions = call(method, features)
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
    given = signals(method)

    def named(features: Tensor, *given: Tensor) -> Any:
        return method(features, shape=TILED, **dict(zip(method.signals, given, strict=True)))

    expected, positions = named(features, *given)
    check_positions(positions, tokens, 64)
    kept, kept_positions = engine(trace(named, features, *given))(features, *given)
    np.testing.assert_array_equal(kept_positions, positions.numpy())
    np.testing.assert_allclose(kept, expected.numpy(), rtol=0, atol=1e-5)


@methods
def test_equal_tokens_are_no_trouble(name: str) -> None:
    """A blank page: all tokens are zero. Nothing is NaN and positions still differ."""
    kept, positions = call(make(name, 16), torch.zeros(1, 64, 16), zero=True)
    assert kept.tolist() == torch.zeros(1, 16, 16).tolist()
    check_positions(positions, 16, 64)


@methods
@pytest.mark.parametrize("tokens", [0, -1, 65])
def test_impossible_budget(name: str, tokens: int) -> None:
    """One line: the method, what was got, what was expected, what to do."""
    module = METHODS.load(name)
    with pytest.raises(PlanError, match=rf"^{name}: got tokens={tokens}, expected .*64.*; choose "):
        module.Method(tokens=tokens).plan(SHAPE)


@methods
def test_unknown_option(name: str) -> None:
    """Options are keywords, and a wrong one is Python's own error."""
    with pytest.raises(TypeError, match="nonsense"):
        METHODS.load(name).Method(tokens=16, nonsense=1)
    with pytest.raises(TypeError):
        METHODS.load(name).Method(16, 1)


@methods
@pytest.mark.parametrize("tokens", [16, None])
def test_exports_and_onnx_agrees(
    name: str, tokens: int | None, features: Tensor, trace: Any, engine: Any
) -> None:
    """The graph is static, and ONNX Runtime gives the same tokens at the same positions."""
    method = make(name, tokens)
    given = signals(method)

    def named(features: Tensor, *given: Tensor) -> Any:
        return method(features, **dict(zip(method.signals, given, strict=True)))

    program = trace(named, torch.zeros_like(features), *map(torch.zeros_like, given))
    expected, positions = named(features, *given)
    kept, kept_positions = engine(program)(features, *given)
    assert kept_positions.dtype == np.int32
    np.testing.assert_array_equal(kept_positions, positions.numpy())
    np.testing.assert_allclose(kept, expected.numpy(), rtol=0, atol=1e-5)
