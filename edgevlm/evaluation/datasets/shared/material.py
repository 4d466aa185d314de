"""The real material of the embedded dataset: photographs of hands, emoji, sentences about images.

The package contains the test part, as sheets of equal tiles; the training part is read from the
folders of the unpacked archives. Photographs are split by person: the files of each digit are in
the order of the people, so blocks of files are blocks of people. Emoji are split by their name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgevlm.evaluation.datasets.shared.drawing import MATERIAL
from edgevlm.evaluation.datasets.shared.sentences import true_or_false

HAND, EMOJI = 100, 48  # pixels a side
COLUMNS = 20  # of a sheet
TEST_PEOPLE, VALIDATION_PEOPLE = 20, 12  # photographs of each digit, from the end


@dataclass(frozen=True)
class Sentence:
    """A sentence of NLVR, with the images of one set that it is true of, or false."""

    prompt: str
    answer: str
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class Material:
    """Photographs with the digits that they sign, emoji, and sentences."""

    photos: tuple[Image.Image, ...]
    digits: tuple[str, ...]
    emoji: tuple[Image.Image, ...]
    sentences: tuple[Sentence, ...] = ()


def packaged_material() -> Material:
    """The test part, from the sheets in the package.

    `hands.jpg` has a row of 20 people for each digit from 0; `emoji.png` is filled row by row, and
    its last row may end early.
    """
    hands = Image.open(MATERIAL / "hands.jpg").convert("RGB")
    emoji = Image.open(MATERIAL / "emoji.png").convert("RGBA")
    photos = tuple(_tiles(hands, HAND))
    faces = tuple(tile for tile in _tiles(emoji, EMOJI) if tile.getbbox() is not None)
    return Material(photos, tuple(str(i // COLUMNS) for i in range(len(photos))), faces)


def write_sheets(data: Path, folder: Path) -> None:
    """Write the sheets of `packaged_material` from the unpacked archives."""
    material = training_material(data, "test")
    rows = -(-len(material.emoji) // COLUMNS)
    hands = Image.new("RGB", (COLUMNS * HAND, 10 * HAND))
    emoji = Image.new("RGBA", (COLUMNS * EMOJI, rows * EMOJI))
    for sheet, tiles, side in ((hands, material.photos, HAND), (emoji, material.emoji, EMOJI)):
        for index, tile in enumerate(tiles):
            sheet.paste(tile, (index % COLUMNS * side, index // COLUMNS * side))
    hands.save(folder / "hands.jpg", quality=88, subsampling=0)
    emoji.save(folder / "emoji.png", optimize=True)


def training_material(data: Path, split: str) -> Material:
    """The part `split` (train, validation or test) of the unpacked archives in `data`."""
    photos, digits = [], []
    for digit in range(10):
        files = sorted((data / "sign_digits" / str(digit)).glob("*.JPG"))
        for file in _people(files, split):
            photos.append(Image.open(file).convert("RGB"))
            digits.append(str(digit))
    folder = data / "emoji_noto" / "png72"
    emoji = [
        Image.open(file).convert("RGBA").resize((EMOJI, EMOJI), Image.Resampling.BOX)
        for file in sorted(folder.glob("*.png"))
        if emoji_split(file.name) == split
    ]
    return Material(tuple(photos), tuple(digits), tuple(emoji), tuple(_sentences(data, split)))


def _tiles(sheet: Image.Image, side: int) -> Iterator[Image.Image]:
    for top in range(0, sheet.height, side):
        for left in range(0, sheet.width, side):
            yield sheet.crop((left, top, left + side, top + side))


def emoji_split(name: str) -> str:
    """Split of an emoji, by a hash of its file name."""
    bucket = hashlib.sha256(name.encode()).digest()[0] % 12
    return {0: "test", 1: "validation"}.get(bucket, "train")


def _people(files: list[Path], split: str) -> list[Path]:
    test, validation = len(files) - TEST_PEOPLE, len(files) - TEST_PEOPLE - VALIDATION_PEOPLE
    parts = {"train": slice(0, validation), "validation": slice(validation, test)}
    return files[parts.get(split, slice(test, None))]


def _sentences(data: Path, split: str) -> list[Sentence]:
    """Sentences of NLVR's training part; every tenth set of pictures is for validation."""
    path, found = data / "nlvr" / "train" / "train1000.jsonl", []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        number = row["identifier"].partition("-")[0]
        if (int(number) % 10 == 0) != (split == "validation"):
            continue
        folder = data / "nlvr" / "train" / "images" / row["directory"]
        pictures = tuple(folder / name for name in row["images"])
        found.append(
            Sentence(
                true_or_false(row["sentence"]),
                row["label"],
                pictures,
            )
        )
    return found
