"""Draw items on a background: shapes, text, emoji and photographs, antialiased by supersampling.

An image is SIZE x SIZE pixels; a visual token of the embedded model covers CELL x CELL of them, so
the smallest item is two tokens wide. Item colours are saturated and backgrounds are not, so that an
item never hides in its background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import cos, pi, sin
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE, CELL = 168, 12
SCALE = 2  # supersampling
COLOURS = {
    "red": (214, 32, 32),
    "orange": (245, 130, 20),
    "yellow": (246, 214, 20),
    "green": (30, 150, 50),
    "blue": (30, 80, 215),
    "purple": (130, 40, 165),
    "pink": (250, 120, 185),
    "black": (18, 18, 18),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
WIDTHS = {"small": (24, 28), "medium": (36, 40), "large": (50, 56)}  # pixels
CHARACTERS = (
    "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"  # without O and I, which are 0 and 1 in some fonts
)
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSansMono-Bold",
    "DejaVuSans-Oblique",
)
MATERIAL = Path(__file__).parents[1] / "material"


@dataclass(frozen=True)
class Item:
    """One thing in an image.

    Attributes:
        kind: shape, text, emoji or photo.
        name: The shape's name, the text, or the number of the emoji or photograph.
        colour: Name of the colour; empty for emoji and photographs.
        size: small, medium or large; empty for text and photographs.
        x: Centre, pixels from the left.
        y: Centre, pixels from the top.
        width: Pixels.
        height: Pixels.
        angle: Turn in degrees.
        font: Index of `FONTS`, for text.
        points: Font size in pixels, for text.
    """

    kind: str
    name: str
    colour: str
    size: str
    x: float
    y: float
    width: float
    height: float
    angle: float = 0.0
    font: int = 0
    points: int = 0

    @property
    def title(self) -> str:
        """Colour and shape: `red star`."""
        return f"{self.colour} {self.name}"

    def at(self, x: float, y: float) -> Item:
        """The same item elsewhere."""
        return replace(self, x=x, y=y)

    def near(self, other: Item, gap: float) -> bool:
        """Whether two boxes are closer than `gap` pixels."""
        across = abs(self.x - other.x) - (self.width + other.width) / 2
        down = abs(self.y - other.y) - (self.height + other.height) / 2
        return across < gap and down < gap

    @property
    def inside(self) -> bool:
        """Whether the item lies inside the image."""
        return (
            self.width / 2 + 1 <= self.x <= SIZE - self.width / 2 - 1
            and self.height / 2 + 1 <= self.y <= SIZE - self.height / 2 - 1
        )


def draw(
    ground: Image.Image, items: Sequence[Item], pictures: Sequence[Image.Image] = ()
) -> Image.Image:
    """Items over a background, the last on top; emoji and photos are named by index of `pictures`.

    Shapes and text are drawn at twice the size and averaged down; backgrounds are not.
    """
    canvas = ground.resize((SIZE * SCALE, SIZE * SCALE), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    for item in items:
        if item.kind == "shape":
            _shape(pen, item)
        elif item.kind == "text":
            _text(pen, item)
    canvas = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    for item in items:
        if item.kind in ("emoji", "photo"):
            _paste(canvas, item, pictures[int(item.name)])
    return canvas


def background(rng: Random) -> Image.Image:
    """A plain, shaded, striped, speckled or cluttered background in a muted colour."""
    base = _muted(rng)
    kind = rng.choice(("plain", "shaded", "striped", "speckled", "cluttered"))
    if kind == "plain":
        return Image.new("RGB", (SIZE, SIZE), base)
    if kind == "shaded":
        corners = np.array([[base, _muted(rng)], [_muted(rng), base]], np.uint8)
        return Image.fromarray(corners).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if kind == "speckled":
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 14, (SIZE, SIZE, 1))
        return Image.fromarray(np.clip(np.array(base) + noise, 0, 255).astype(np.uint8))
    ground = Image.new("RGB", (SIZE, SIZE), base)
    pen = ImageDraw.Draw(ground)
    if kind == "striped":
        step, other, upright = rng.randint(8, 30), _muted(rng), rng.random() < 0.5
        for start in range(0, SIZE, 2 * step):
            end = start + step - 1
            box = (start, 0, end, SIZE) if upright else (0, start, SIZE, end)
            pen.rectangle(box, fill=other)
        return ground
    for _ in range(rng.randint(15, 40)):
        x, y, length = rng.randint(0, SIZE), rng.randint(0, SIZE), rng.randint(3, 14)
        if rng.random() < 0.5:
            across, down = rng.randint(-40, 40), rng.randint(-40, 40)
            pen.line((x, y, x + across, y + down), fill=_muted(rng), width=rng.randint(1, 3))
        else:
            pen.ellipse((x, y, x + length, y + length), fill=_muted(rng))
    return ground.filter(ImageFilter.GaussianBlur(rng.choice((0, 0.7, 1.5))))


def text_size(text: str, font: int, points: int) -> tuple[float, float]:
    """Width and height in pixels of a text in a font size."""
    left, top, right, bottom = _font(font, points * SCALE).getbbox(text, anchor="lt")
    return (right - left) / SCALE, (bottom - top) / SCALE


def letters(item: Item) -> list[tuple[str, float, float]]:
    """The letters of a text, each with its left and right end in pixels."""
    font = _font(item.font, item.points * SCALE)
    start = item.x - item.width / 2
    ends = [start + font.getlength(item.name[:n]) / SCALE for n in range(len(item.name) + 1)]
    return list(zip(item.name, ends, ends[1:], strict=False))


def cells(items: Sequence[Item]) -> NDArray[np.int32]:
    """The item under each token's centre, last on top, -1 where none is: i32 [rows, columns]."""
    side = SIZE // CELL
    found = np.full((side, side), -1, np.int32)
    centres = (np.arange(side) + 0.5) * CELL
    for index, item in enumerate(items):
        rows = np.abs(centres - item.y) <= item.height / 2
        columns = np.abs(centres - item.x) <= item.width / 2
        found[np.ix_(rows, columns)] = index
    return found


def _muted(rng: Random) -> tuple[int, int, int]:
    grey = rng.randint(150, 250)
    red, green, blue = (min(255, max(0, grey + rng.randint(-14, 14))) for _ in range(3))
    return red, green, blue


def _paste(canvas: Image.Image, item: Item, picture: Image.Image) -> None:
    size = (round(item.width), round(item.height))
    small = picture.resize(size, Image.Resampling.BILINEAR)
    corner = (round(item.x - item.width / 2), round(item.y - item.height / 2))
    canvas.paste(small, corner, small if small.mode == "RGBA" else None)


def _text(pen: ImageDraw.ImageDraw, item: Item) -> None:
    font = _font(item.font, item.points * SCALE)
    corner = ((item.x - item.width / 2) * SCALE, (item.y - item.height / 2) * SCALE)
    pen.text(corner, item.name, font=font, fill=COLOURS[item.colour], anchor="lt")


def _shape(pen: ImageDraw.ImageDraw, item: Item) -> None:
    x, y, r = item.x * SCALE, item.y * SCALE, item.width / 2 * SCALE
    fill = COLOURS[item.colour]
    if item.name == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif item.name == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=round(r * 0.42))
    else:
        turn = item.angle * pi / 180
        c, s = cos(turn), sin(turn)
        corners = OUTLINES[item.name]
        pen.polygon([(x + r * (u * c - v * s), y + r * (u * s + v * c)) for u, v in corners], fill)


@cache
def _font(index: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(MATERIAL / f"{FONTS[index]}.ttf"), size)


def _star() -> list[tuple[float, float]]:
    radii = (1.0, 0.42) * 5
    angles = [-pi / 2 + k * pi / 5 for k in range(10)]
    return [(r * cos(a), r * sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[tuple[float, float]]:
    steps = [2 * pi * k / 40 for k in range(40)]
    return [
        (
            sin(t) ** 3,
            -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 16 - 0.1,
        )
        for t in steps
    ]


# Corners in units of half the width, y downwards.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0, -0.95), (0.98, 0.8), (-0.98, 0.8)],
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    "cross": [
        (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
        (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
    ],
    "star": _star(),
    "heart": _heart(),
}  # fmt: skip
