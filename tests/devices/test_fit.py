"""What fits a device, in numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from edgevlm.devices.shared.fit import (
    BLOCK_SIZES_BYTES,
    RESERVE_BYTES,
    OfferedSchemes,
    exactness,
    fit,
)
from edgevlm.devices.shared.named import FIGURES, Device, FigureSource
from edgevlm.recipe import Recipe
from edgevlm.units import MB

SOURCE = FigureSource("vendor", "https://example.org", "a figure")
PHONE = Device(
    name="phone",
    model="A phone",
    target="coreml",
    os="Linux",
    memory_bytes=4000 * MB,
    app_limit_bytes=1256 * MB,  # a budget of 1000 MB
    bandwidth_bytes_per_s=50 * 10**9,
    npu=None,
    npu_tops=None,
    sources=dict.fromkeys(FIGURES[:4], SOURCE),
    missing={"npu": "it has none", "npu_tops": "no NPU"},
)
# Bytes of float32 weights, and what a scheme leaves of them, in eighths.
EIGHTHS = {"none": 8, "fp16": 4, "w8a16": 2, "w4g32a16": 1}
KV = 100 * MB
SCHEMES = OfferedSchemes(("none", "fp16", "w8a16", "w4g32a16"))
RECIPE = Recipe(target="coreml", block_size_bytes=50 * MB)


def planner(size, seen=None):
    """Plans of `size` bytes in float32: a half decoder, a quarter head, a quarter vision."""

    def make(recipe):
        if seen is not None:
            seen.append((str(recipe.quantize), recipe.block_size_bytes // MB))
        scheme = str(recipe.quantize)
        weights = size * EIGHTHS[scheme] // 8
        blocks = []
        for stage, share in (("vision", 4), ("decoder", 2), ("head", 4)):
            whole = size // share
            count = -(-whole // recipe.block_size_bytes)
            each = weights // share // count
            blocks += [SimpleNamespace(stage=stage, weights_bytes=each) for _ in range(count)]
        states = SimpleNamespace(bytes=KV, tokens=512)
        host = SimpleNamespace(states=states, visual_tokens=64)
        return SimpleNamespace(kind="vlm", weights_bytes=weights, blocks=blocks, host=host)

    return make


def test_the_reserve_is_what_the_numbers_below_assume():
    assert RESERVE_BYTES == 256 * MB
    assert [size // MB for size in BLOCK_SIZES_BYTES] == [512, 256, 128, 64, 32, 16, 8]


def test_what_fits_is_left_as_it_is():
    found = fit(PHONE, RECIPE, SCHEMES, planner(800 * MB))
    assert (found.limit_bytes, found.budget_bytes) == (1256 * MB, 1000 * MB)
    assert found.limit_from == "vendor"
    assert found.asked.needed_bytes == 900 * MB
    assert found.asked.fits
    assert found.best == found.asked
    # Decoder 400 and head 200 MB, read at 50 GB/s.
    assert found.asked.token_bytes == 600 * MB
    assert found.asked.token_floor_ms == pytest.approx(12.0)
    # At 512 MB the decoder is one block of 400: 100 + 2 x 400 = 900 MB.
    assert found.block_size_bytes == 512 * MB
    assert found.calculated
    assert found.not_measured == {}


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        (900, "none"),  # with the cache the budget itself
        (901, "fp16"),
        (1800, "fp16"),
        (1801, "w8a16"),
        (3600, "w8a16"),
        (7200, "w4g32a16"),
    ],
)
def test_the_most_exact_scheme_that_fits(size, scheme):
    found = fit(PHONE, RECIPE, SCHEMES, planner(size * MB))
    assert found.best.fits
    assert found.best.quantize == scheme
    assert found.asked.fits == (scheme == "none")


def test_nothing_fits_whole_but_blocks_do():
    # 8000 MB: 1000 + 100 in 4 bits. Blocks of 512 MB in float32 are 500 / 8 = 62.5 MB.
    found = fit(PHONE, RECIPE, SCHEMES, planner(8000 * MB))
    assert (found.best.quantize, found.best.fits) == ("w4g32a16", False)
    assert found.best.needed_bytes == 1100 * MB
    assert found.block_size_bytes == 512 * MB


@pytest.mark.parametrize(
    ("budget", "block"),
    [(1124, 512), (1123, 256), (612, 256), (611, 128), (228, 64), (163, 16), (116, 8), (115, None)],
)
def test_the_largest_block_that_leaves_room_for_the_next(budget, block):
    # 6144 MB are cut into blocks of exactly the size that is asked for: 100 MB and two of them.
    phone = replace(PHONE, app_limit_bytes=(256 + budget) * MB)
    found = fit(phone, RECIPE, OfferedSchemes(("none",)), planner(6144 * MB))
    assert not found.best.fits
    assert found.block_size_bytes == (block and block * MB)
    assert set(found.not_measured) == (set() if block else {"block_size_bytes"})


def test_half_of_the_memory_where_no_limit_is_known():
    sources = {k: v for k, v in PHONE.sources.items() if k != "app_limit_bytes"}
    missing = PHONE.missing | {"app_limit_bytes": "none is set"}
    board = replace(PHONE, app_limit_bytes=None, sources=sources, missing=missing)
    found = fit(board, RECIPE, SCHEMES, planner(800 * MB))
    assert (found.limit_bytes, found.budget_bytes) == (2000 * MB, 1744 * MB)
    assert found.limit_from == "half of memory"


def test_no_bandwidth_no_floor():
    sources = {k: v for k, v in PHONE.sources.items() if k != "bandwidth_bytes_per_s"}
    missing = PHONE.missing | {"bandwidth_bytes_per_s": "not published"}
    board = replace(PHONE, bandwidth_bytes_per_s=None, sources=sources, missing=missing)
    found = fit(board, RECIPE, SCHEMES, planner(800 * MB))
    assert found.asked.token_floor_ms is None
    assert found.not_measured == {"token_floor_ms": "no bandwidth: not published"}


def test_a_budget_is_not_below_zero():
    found = fit(replace(PHONE, app_limit_bytes=100 * MB), RECIPE, SCHEMES, planner(8 * MB))
    assert found.budget_bytes == 0
    assert not found.best.fits


def test_schemes_that_are_unpacked_save_no_memory():
    schemes = replace(SCHEMES, unpacked=("fp16",))
    asked = replace(RECIPE, quantize="fp16")
    found = fit(PHONE, asked, schemes, planner(1600 * MB))
    assert found.asked.quantize == "fp16"
    assert found.asked.weights_bytes == 1600 * MB
    assert not found.asked.fits
    assert found.best.quantize == "w8a16"


def test_nothing_is_planned_twice():
    seen = []
    fit(PHONE, RECIPE, SCHEMES, planner(1800 * MB, seen))
    assert len(seen) == len(set(seen))
    assert ("w8a16", 64) not in seen  # fp16 fits


def test_exactness_is_bits_of_weights_then_of_rows():
    ranked = sorted(
        ("p4", "w4g32a8", "w8a8", "none", "w4g32a16", "p6", "fp16", "w8a32", "w4g32a32", "w8a8s"),
        key=exactness,
        reverse=True,
    )
    assert ranked == [
        "none", "fp16", "w8a32", "w8a8", "w8a8s", "p6", "w4g32a32", "p4", "w4g32a16", "w4g32a8"
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["onnx", "coreml", "executorch"])
def test_every_scheme_of_every_target_has_a_place(target):
    from edgevlm.devices.shared.fit import offered
    from edgevlm.exporters.contract import find_target

    pytest.importorskip({"onnx": "onnx_ir", "coreml": "coremltools"}.get(target, target))
    assert all(exactness(scheme) > (0, 0) for scheme in find_target(target).schemes)
    names = offered(Recipe(target=target)).names
    assert names[0] == "none"
    assert "w8a8s" not in names


def test_what_targets_say_of_their_schemes():
    from edgevlm.devices.shared.fit import offered

    pytest.importorskip("onnx_ir")
    assert offered(Recipe(target="onnx")).unpacked == ("fp16", "w8a32")
    pytest.importorskip("executorch")
    assert offered(Recipe(target="executorch", backend="vulkan")).names == ("none", "w4g32a8")
