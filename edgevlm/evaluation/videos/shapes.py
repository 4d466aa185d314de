"""Clips of one coloured shape: how a prompt is drawn, and what a clip shows.

A prompt names a colour, a shape and a motion, and may name the ground: "a red circle moves slowly
left on a black background". `draw` makes a clip of it from a seed. `judge` says what a clip of
unknown origin shows, without the prompt: it finds the ground at the border of the frames, takes
what differs from it as the shape, names the colour by the nearest of the palette, the shape by the
drawn outline of equal area that overlaps best, and the motion by how centre and area change.

One prompt in six (`Prompt.held_out`) is never trained on, although each of its words is.

Limits: one shape, a plain ground, shapes that stay upright and inside the frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

SIZE, FRAMES, FRAMES_PER_SECOND = 64, 21, 8  # pixels a side; frames of a clip: 4k+1, as Wan asks
COLOURS = {
    "red": (215, 35, 40),
    "green": (40, 165, 60),
    "blue": (40, 75, 220),
    "yellow": (240, 215, 40),
    "purple": (150, 50, 185),
    "orange": (245, 135, 25),
}
GROUNDS = {"black": 18, "white": 236}
SHAPES = ("circle", "square", "triangle", "cross")
REACH = {"circle": 1.0, "square": 0.89, "triangle": 1.45, "cross": 1.1}  # of the radius
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (
    *(f"moves {way}" for way in WAYS),
    *(f"moves slowly {way}" for way in WAYS),
    "grows",
    "shrinks",
    "stays still",
)
FAST, SLOW = 24.0, 12.0  # pixels from the first frame to the last
RADIUS, SMALL, LARGE, GRID = 8.0, 6.0, 12.0, 8  # pixels; a shape starts on a grid of places
SLOW_BELOW, STILL_BELOW = 18.5, 4.5  # the judge's limits between and below those
GROWN = 1.6  # ratio of areas from which a shape grows or shrinks; drawn is 4
OVERLAP, NEAR = 0.75, 75.0  # least overlap with an outline; farthest distance to a colour
VISIBLE = 36.0  # least difference from the ground, of 255


@dataclass(frozen=True)
class Prompt:
    """What a clip should show; `ground` None: not said."""

    colour: str
    shape: str
    motion: str
    ground: str | None = None

    @property
    def text(self) -> str:
        """The prompt as a sentence."""
        article = "an" if self.colour == "orange" else "a"
        where = f" on a {self.ground} background" if self.ground else ""
        return f"{article} {self.colour} {self.shape} {self.motion}{where}"

    @property
    def held_out(self) -> bool:
        """Whether colour, shape and motion never come together in training."""
        parts = list(COLOURS).index(self.colour), SHAPES.index(self.shape)
        return (parts[0] + 2 * parts[1] + MOTIONS.index(self.motion)) % 6 == 0


@dataclass(frozen=True)
class Seen:
    """What the judge sees; None where nothing drawn is like it."""

    colour: str | None
    shape: str | None
    motion: str | None
    ground: str | None

    def wrong(self, prompt: Prompt) -> tuple[str, ...]:
        """Names of the parts of a prompt that the clip does not show; empty if it shows all."""
        asked = ((part.name, getattr(prompt, part.name)) for part in fields(self))
        return tuple(n for n, word in asked if word is not None and getattr(self, n) != word)


def prompts(*, held_out: bool) -> list[Prompt]:
    """All prompts, without grounds, in a fixed order: 44 are held out and 220 are not."""
    every = (Prompt(c, s, m) for m in MOTIONS for s in SHAPES for c in COLOURS)
    return [prompt for prompt in every if prompt.held_out == held_out]


def examples(seed: int, *, held_out: bool) -> Iterator[Prompt]:
    """Endless prompts of a seed, shuffled; all come before one comes again; half name a ground."""
    rng = np.random.default_rng(seed)
    every = prompts(held_out=held_out)
    while True:
        for index in rng.permutation(len(every)):
            prompt, ground = every[index], rng.integers(2 * len(GROUNDS))
            named = list(GROUNDS)[ground] if ground < len(GROUNDS) else None
            yield Prompt(prompt.colour, prompt.shape, prompt.motion, named)


def parse(text: str) -> Prompt:
    """The prompt of a sentence.

    Raises:
        ValueError: The sentence is not one that `Prompt.text` gives.
    """
    words = text.split()
    ground = words[-2] if words[-1:] == ["background"] else None
    if len(words) >= 4:
        motion = " ".join(words[3 : -4 if ground else None])
        prompt = Prompt(words[1], words[2], motion, ground)
        known = prompt.colour in COLOURS and prompt.shape in SHAPES and prompt.motion in MOTIONS
        if known and ground in (None, *GROUNDS) and prompt.text == text:
            return prompt
    raise ValueError(f"got '{text}'; expected a prompt such as '{prompts(held_out=True)[0].text}'")


def draw(prompt: Prompt, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A clip that shows a prompt.

    Args:
        prompt: What to show; a ground that is not said is drawn at random.
        rng: Source of the place.

    Returns:
        Frames [FRAMES, SIZE, SIZE, 3], RGB.
    """
    ground = prompt.ground or list(GROUNDS)[rng.integers(len(GROUNDS))]
    first = last = RADIUS
    step = np.zeros(2)
    if prompt.motion in ("grows", "shrinks"):
        first, last = (SMALL, LARGE) if prompt.motion == "grows" else (LARGE, SMALL)
    elif prompt.motion.startswith("moves"):
        way = WAYS[prompt.motion.split()[-1]]
        step = np.array(way) * (SLOW if "slowly" in prompt.motion else FAST)
    margin = REACH[prompt.shape] * max(first, last) + 1.5
    lowest = np.ceil((margin + np.maximum(-step, 0)) / GRID).astype(int)
    highest = np.floor((SIZE - margin - np.maximum(step, 0)) / GRID).astype(int)
    start = GRID * rng.integers(lowest, highest + 1)
    time = np.linspace(0, 1, FRAMES)
    radius = first + (last - first) * time  # [T]
    cover = outline(prompt.shape, start + step * time[:, None], radius)[..., None]
    colour, shade = np.array(COLOURS[prompt.colour]), GROUNDS[ground]
    return np.rint(np.clip(shade + (colour - shade) * cover, 0, 255)).astype(np.uint8)


def outline(
    shape: str, centre: NDArray[np.float64], radius: NDArray[np.float64], size: int = SIZE
) -> NDArray[np.float64]:
    """How much of each pixel a shape covers: [T, size, size], 0 to 1.

    Args:
        shape: One of `SHAPES`; all have about the area of a circle of that radius.
        centre: Centres of area (x, y) in pixels [T, 2].
        radius: Pixels [T].
        size: Pixels a side.
    """
    pixels = np.arange(size) + 0.5
    x = pixels - centre[:, 0, None, None]  # [T, 1, size]
    y = pixels[:, None] - centre[:, 1, None, None]  # [T, size, 1]
    r = radius[:, None, None]
    if shape == "circle":
        distance = np.hypot(x, y) - r
    elif shape == "square":
        distance = np.maximum(abs(x), abs(y)) - 0.89 * r
    elif shape == "triangle":  # equilateral, a tip upward; 0.72 r is the radius of its incircle
        distance = np.maximum(y, abs(x) * np.sqrt(0.75) - y / 2) - 0.72 * r
    else:
        long, wide = 1.1 * r, 0.4 * r
        bar = np.maximum(abs(x) - long, abs(y) - wide)
        distance = np.minimum(bar, np.maximum(abs(x) - wide, abs(y) - long))
    return np.clip(0.5 - distance, 0.0, 1.0)


def judge(frames: NDArray[np.generic]) -> Seen:
    """What a clip shows.

    Args:
        frames: [T, H, H, 3], T at least 5, RGB; integers of 0 to 255, or floats of 0 to 1.

    Raises:
        ValueError: The shape of `frames` is another.
    """
    square = frames.ndim == 4 and frames.shape[1] == frames.shape[2] and frames.shape[3] == 3
    if not square or len(frames) < 5:
        raise ValueError(f"got frames {list(frames.shape)}; expected [T >= 5, H, H, 3]")
    scale = 1.0 if np.issubdtype(frames.dtype, np.integer) else 255.0
    clip = frames.astype(np.float64) * scale
    border = np.concatenate([clip[:, [0, -1]].reshape(-1, 3), clip[:, :, [0, -1]].reshape(-1, 3)])
    ground = np.median(border, 0)
    away = np.linalg.norm(clip - ground, axis=-1)  # [T, H, W]
    inside = away > max(VISIBLE, 0.75 * float(np.quantile(away, 0.995)))
    shade = _nearest(ground, {name: (value,) * 3 for name, value in GROUNDS.items()})
    if inside.sum() < 4 * len(clip):
        return Seen(None, None, None, shade)
    paint = np.median(clip[inside], 0)
    line = paint - ground
    cover = np.clip((clip - ground) @ line / (line @ line), 0.0, 1.0)
    cover[cover < 0.15] = 0.0  # faint traces of a generated clip are no part of the shape
    area = cover.sum((1, 2))  # [T]
    if area.min() < 8:  # it vanishes
        return Seen(_nearest(paint, COLOURS), None, None, shade)
    pixels = np.arange(clip.shape[1]) + 0.5
    across, down = cover.sum(1) @ pixels / area, cover.sum(2) @ pixels / area
    centre = np.stack([across, down], 1)  # [T, 2]
    return Seen(_nearest(paint, COLOURS), _shape(cover, centre, area), _motion(centre, area), shade)


def _nearest(found: NDArray[np.float64], known: Mapping[str, tuple[int, ...]]) -> str | None:
    far = {name: float(np.linalg.norm(found - np.array(value))) for name, value in known.items()}
    best = min(far, key=far.__getitem__)
    return best if far[best] < NEAR else None


def _shape(cover: NDArray[np.float64], centre: NDArray[np.float64],
           area: NDArray[np.float64]) -> str | None:  # fmt: skip
    """The shape whose outline of equal area overlaps best, over every fourth frame."""
    some = slice(None, None, 4)
    score = {}
    for shape in SHAPES:
        unit = outline(shape, np.full((1, 2), 64.0), np.full(1, 40.0), 128).sum() / 1600
        drawn = outline(shape, centre[some], np.sqrt(area[some] / unit), cover.shape[1])
        both, either = np.minimum(drawn, cover[some]), np.maximum(drawn, cover[some])
        score[shape] = float(np.mean(both.sum((1, 2)) / either.sum((1, 2))))
    best = max(score, key=score.__getitem__)
    return best if score[best] > OVERLAP else None


def _motion(centre: NDArray[np.float64], area: NDArray[np.float64]) -> str | None:
    """The motion, from the means of the first and the last two frames; None: unlike any."""
    ratio = area[-2:].mean() / area[:2].mean()
    if max(ratio, 1 / ratio) > GROWN:
        return "grows" if ratio > 1 else "shrinks"
    # Two frames' means lie half a frame inside the clip on either side.
    step = (centre[-2:].mean(0) - centre[:2].mean(0)) * (len(centre) - 1) / (len(centre) - 2)
    far = float(np.linalg.norm(step))
    path = float(np.linalg.norm(np.diff(centre[::4], axis=0), axis=1).sum())
    if far < STILL_BELOW:
        return "stays still" if path < 3 * STILL_BELOW else None
    for way, unit in WAYS.items():
        if step @ np.array(unit) > 0.9 * far and path < 1.4 * far + STILL_BELOW:
            return f"moves {way}" if far > SLOW_BELOW else f"moves slowly {way}"
    return None
