"""Named devices: each figure has a source, and a file that is not in order is refused in a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.devices.shared import named
from edgevlm.errors import DeviceError, RecipeError

GOOD = """
name = "board"
model = "A board"
os = "Linux"
memory_bytes = 4_000_000_000
target = "onnx"

[sources.os]
kind = "vendor"
url = "https://example.org/os"
says = "runs Linux"

[sources.memory_bytes]
kind = "derived"
url = "https://example.org/memory"
says = "2 x 2 GB"

[missing]
app_limit_bytes = "none is set"
bandwidth_bytes_per_s = "not published"
npu = "it has none"
npu_tops = "no NPU"
"""


@pytest.fixture
def board(tmp_path) -> Path:
    return tmp_path / "board.toml"


def test_there_are_the_devices_that_people_have():
    assert {
        "iphone-15-pro", "iphone-16-pro", "iphone-17-pro", "pixel-9", "pixel-10", "galaxy-s24",
        "galaxy-s25", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-thor", "raspberry-pi-5",
    } <= set(named.names())  # fmt: skip


@pytest.mark.parametrize("name", named.names())
def test_every_figure_has_a_source_and_every_gap_a_reason(name):
    device = named.load(name)
    assert device.name == name
    assert set(device.sources) | set(device.missing) == set(named.FIGURES)
    for figure in named.FIGURES:
        assert (figure in device.sources) == (getattr(device, figure) is not None)
    assert all(source.url.startswith("http") for source in device.sources.values())
    assert all(reason.strip() for reason in device.missing.values())


@pytest.mark.parametrize("name", named.names())
def test_figures_are_of_devices_that_exist(name):
    device = named.load(name)
    assert 4e9 <= device.memory_bytes <= 128e9
    assert 10e9 <= (device.bandwidth_bytes_per_s or 10e9) <= 300e9
    if device.app_limit_bytes:
        assert 0.2 < device.app_limit_bytes / device.memory_bytes < 0.9


@pytest.mark.parametrize("name", named.names())
def test_targets_are_those_that_can_be_exported(name):
    from edgevlm.registry import TARGETS

    assert named.load(name).target in TARGETS.names()


def test_arithmetic_that_the_files_show():
    limits = {name: named.load(f"iphone-{name}-pro").app_limit_bytes for name in ("15", "16")}
    assert limits == {"15": 3376 * 2**20, "16": 3376 * 2**20}
    bits = {"iphone-15-pro": 6400 * 64, "iphone-17-pro": 9600 * 64, "pixel-10": 8533 * 64,
            "galaxy-s24": 2 * 4800 * 64, "galaxy-s25": 10600 * 64, "raspberry-pi-5": 4267 * 32,
            "dell-xps-13-9350": 8533 * 128}  # fmt: skip
    for name, mega in bits.items():
        assert named.load(name).bandwidth_bytes_per_s == mega * 10**6 // 8


def test_a_file_is_read(board):
    board.write_text(GOOD)
    device = named.load_file(board)
    assert (device.memory_bytes, device.app_limit_bytes, device.npu) == (4 * 10**9, None, None)
    assert device.sources["memory_bytes"].says == "2 x 2 GB"
    assert device.missing["npu"] == "it has none"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("memory_bytes = 4", "memroy_bytes = 4",
         "board.toml has an unknown key 'memroy_bytes'; did you mean 'memory_bytes'?"),
        ('model = "A board"\n', "", "board.toml lacks the key 'model'"),
        ("4_000_000_000", '"4GB"', "board.toml.memory_bytes must be an integer, got '4GB'"),
        ("4_000_000_000", "0", "board.toml: the figures in bytes and npu_tops must be above 0"),
        ("[sources.memory_bytes]", "[sources.npu_tops]",
         "board.toml: memory_bytes needs a source and no entry in `missing`"),
        ('npu = "it has none"\n', "",
         "board.toml: npu needs no source and a reason in `missing`"),
        ("[missing]", '[missing]\nmemory_bytes = "?"',
         "board.toml: memory_bytes needs a source and no entry in `missing`"),
        ("[missing]", '[missing]\nnpu_top = "?"', "board.toml: unknown figure 'npu_top';"
         " did you mean 'npu_tops'? known: app_limit_bytes, bandwidth_bytes_per_s, memory_bytes,"
         " npu, npu_tops, os"),
        ('"derived"', '"guess"', "board.toml.sources.memory_bytes: kind must be one of vendor,"
         " press, observation, derived, got 'guess'"),
        ("https://example.org/os", "a book", "board.toml.sources.os: a source needs `url`,"
         " which begins with http, and a text in `says`"),
        ('name = "board"', 'name = "bord"', "board.toml: name must be the file's, got 'bord'"),
        ('name = "board"', "name = ", "board.toml: Invalid value (at line 2, column 8)"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(board, old, new, message):
    assert old in GOOD
    board.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(DeviceError) as error:
        named.load_file(board)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["iphone-15-pr", "../pyproject", "", "named"])
def test_an_unknown_name_comes_with_the_nearest(name):
    with pytest.raises(RecipeError) as error:
        named.load(name)
    known = ", ".join(named.names())
    near = "; did you mean 'iphone-15-pro'?" if name == "iphone-15-pr" else ";"
    assert str(error.value) == f"unknown device '{name}'{near} known: {known}"
