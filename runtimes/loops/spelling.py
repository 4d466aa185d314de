"""From the items of a layout to token ids, and to the places of visual tokens between them.

Text that is known at run time, and the fixed text that meets it, is one run: it is tokenized as
one, for a word may begin in one item and end in the next. A run ends where a special token stands.
Such a token may take the blanks beside it, and a tokenizer may put a blank in front of the first
word of a whole text, or of every text but not within one, behind a reply. All this is said by the
items, since a run does not know where it stands.

The length of a text is checked before it is tokenized: that takes hundreds of bytes a letter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm.bundle.host import LEVELS, Layout, LayoutItem
from edgevlm.errors import InputError
from edgevlm.runtimes import values

PLACE = "{image}"  # of an image in a prompt
PIECE = 4096  # letters that are tokenized at a time
SLACK = 16  # tokens that a cut may add
RUN_TIME = ("user_text", "system_text")  # items of a user's texts
TIMES = ("timestamp", "seconds", "duration")  # items of the times of a clip
TOKENIZER_BYTES = 800  # of a byte of text: 160 to 660 were measured
# White space of Unicode, which is what a special token takes with `lstrip` or `rstrip`. Python's
# `str.strip` takes U+001C to U+001F too, and is what a chat template does with `trim`.
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


@dataclass(frozen=True)
class Visual:
    """Outputs of `reduce` for one image or clip, and the times of its frames in seconds."""

    tokens: NDArray[np.float32]  # [K, C]
    positions: NDArray[np.int32]  # [K]
    times: tuple[float, ...] = ()
    duration: float = 0.0
    log_sizes: NDArray[np.float32] | None = None  # [K], where `VlmHost.calibrated`
    visual_signal: NDArray[np.float32] | None = None  # [K], where `VlmHost.carried` is "vision"
    levels: NDArray[np.float32] | None = None  # [L, K, C], of `VlmHost.levels`

    @classmethod
    def of(
        cls,
        reduced: Mapping[str, NDArray[Any]],
        times: tuple[float, ...] = (),
        duration: float = 0.0,
    ) -> Visual:
        """The outputs of `reduce` by name, with their batch axis; they are copied."""
        copies = {name: array[0].copy() for name, array in reduced.items()}
        levels = [copies.pop(f"kept_{name}") for name in LEVELS if f"kept_{name}" in copies]
        tokens, positions = copies.pop("visual_tokens"), copies.pop("kept_positions")
        stacked = np.stack(levels) if levels else None
        return cls(tokens, positions, times, duration, **copies, levels=stacked)


@dataclass(frozen=True)
class Slot:
    """A place for visual tokens: those of `visual` whose position lies within the item's range."""

    item: LayoutItem
    visual: Visual

    @property
    def selected(self) -> NDArray[np.bool_]:
        """Which of the visual tokens these are: [K]."""
        positions = self.visual.positions
        return (positions >= self.item.start) & (positions < self.item.stop)


class Marker(list[int]):
    """Ids of an item with places of its own."""

    def __init__(self, item: LayoutItem) -> None:
        super().__init__(item.ids)
        self.item = item


def with_images(question: str, images: int) -> str | list[str | None]:
    """A question with its images where it says `{image}`; alone where it does not.

    Raises:
        InputError: If it says so for another number of images.
    """
    texts: list[str] = question.split(PLACE)
    places = len(texts) - 1
    if places not in (0, images):
        raise InputError(
            f"the prompt has {PLACE} {places} times, and images are {images}; give as many, or"
            f" leave {PLACE} out of the prompt"
        )
    return [part for text in texts for part in (text, None)][:-1] if places else question


def turn_parts(question: str | Sequence[str | None]) -> list[str | None]:
    """The texts of a turn, and None for each image; without empty texts among others.

    Raises:
        InputError: If one is something else, or there is none.
    """
    if not isinstance(question, list | tuple):
        return [values.text("the prompt", question)]
    parts = [
        part if part is None else values.text(f"prompt[{index}]", part)
        for index, part in enumerate(question)
    ]
    if not (parts := [part for part in parts if part != ""]):
        raise InputError("the prompt has neither a text nor a picture")
    return parts


def mixed(parts: Sequence[str | None]) -> bool:
    """Whether the parts of a turn are others than pictures (None) and one text behind them."""
    return len(list(dropwhile(lambda part: part is None, parts))) != 1


def first_turn(
    layout: Layout, parts: Sequence[str | None], system: str | None = None
) -> list[LayoutItem]:
    """Items of a first turn with its texts in their places.

    Args:
        layout: The sequence of turns, which has what is asked for: `mixes`, `prompt_system`.
        parts: Texts, and None for each picture, in their order; a clip is one picture.
        system: A system text.
    """
    plain = layout.prompt if None in parts else layout.text
    items = _mixture(layout, parts) if mixed(parts) else bare(plain)
    if system is not None:
        first = next(i for i, item in enumerate(items) if item.kind in ("image", "user_text"))
        opening = layout.prompt_system if None in parts[:1] else layout.text_system
        items = [*bare(opening), *items[first:]]
    texts, placed = iter([part for part in parts if part is not None]), list[LayoutItem]()
    for item in items:
        if item.kind in RUN_TIME:
            text = system if item.kind == "system_text" else next(texts)
            item = LayoutItem("text", prefix=trimmed(text or "", item.trim))
        placed.append(item)
    return placed


def bare(items: Sequence[LayoutItem]) -> list[LayoutItem]:
    """The same items, where those of the user's texts have no fixed text of their own."""
    split: list[LayoutItem] = []
    for item in items:
        if item.kind not in RUN_TIME:
            split.append(item)
            continue
        left, right = (side if item.strip in (side, "both") else "" for side in ("left", "right"))
        before = replace(item, kind="text", suffix="", trim="", strip=left)
        after = LayoutItem("text", prefix=item.suffix, strip=right)
        split += [before, LayoutItem(item.kind, trim=item.trim), after]
    return [item for item in split if item != LayoutItem("text")]


def _mixture(layout: Layout, parts: Sequence[str | None]) -> list[LayoutItem]:
    """Items of a first turn of texts and pictures in any order."""
    prompt, text = bare(layout.prompt), bare(layout.text)
    kinds = [item.kind for item in prompt]
    image, asked = kinds.index("image"), kinds.index("user_text")
    joints = {
        ("", "image"): prompt[:image], ("image", "image"): layout.between,
        ("", "user_text"): text[: [item.kind for item in text].index("user_text")],
        ("image", "user_text"): prompt[image + 1 : asked], ("image", ""): layout.image_end,
        ("user_text", "image"): layout.text_image, ("user_text", ""): prompt[asked + 1 :],
        ("user_text", "user_text"): layout.text_text,
    }  # fmt: skip
    order = ["image" if part is None else "user_text" for part in parts]
    items, images = list[LayoutItem](), 0
    for left, right in pairwise(["", *order, ""]):
        items += joints[left, right]
        if right == "image":
            items.append(LayoutItem("image", start=images, stop=images + 1))
            images += 1
        elif right:
            items.append(prompt[asked])
    return items


def spell(
    items: Sequence[LayoutItem],
    layout: Layout,
    tokenizer: Tokenizer,
    question: str,
    visuals: Sequence[Visual],
) -> Iterator[list[int] | Slot]:
    """Token ids and places of visual tokens, in the order of the sequence.

    Args:
        items: `layout.prompt`, `layout.text`, `layout.turn`, or those of `first_turn`.
        layout: What stands for an image and between two.
        tokenizer: The bundle's tokenizer.
        question: The user's text, where the items have a place for it.
        visuals: One for each image or clip of this turn.
    """
    run: list[tuple[LayoutItem, str]] = []
    for item, number, visual in _walk(items, layout, visuals):
        if item.kind not in ("ids", "visual"):
            known = words(item, question, visual, number)
            run.append((item, item.prefix + known + item.suffix))
            continue
        if run:
            yield _encode(tokenizer, run)
        run = []
        if item.kind == "ids":
            yield Marker(item) if item.places else list(item.ids)
        elif visual is not None:
            yield Slot(item, visual)
    if run:
        yield _encode(tokenizer, run)


def trimmed(question: str, sides: str) -> str:
    """A question without the white space at its `left` side, its `right` side, or `both`."""
    question = question.lstrip() if sides in ("left", "both") else question
    return question.rstrip() if sides in ("right", "both") else question


def _walk(
    items: Sequence[LayoutItem], layout: Layout, visuals: Sequence[Visual]
) -> Iterator[tuple[LayoutItem, int, Visual | None]]:
    """All items, those of an image once for each, with its number and the image itself."""
    for item in items:
        if item.kind != "image":
            yield item, 0, None
            continue
        for index, visual in enumerate(visuals[item.start : item.stop or None]):
            if index:
                yield from ((part, 0, None) for part in layout.between)
            yield from ((part, item.start + index, visual) for part in layout.image)


def _encode(tokenizer: Tokenizer, run: Sequence[tuple[LayoutItem, str]]) -> list[int]:
    first, last = run[0][0], run[-1][0]
    text = "".join(part for _, part in run)
    if first.strip in ("left", "both"):
        text = text.lstrip(WHITE_SPACE)
    if last.strip in ("right", "both"):
        text = text.rstrip(WHITE_SPACE)
    if text and first.blank and not text.startswith((" ", "▁")):
        text = " " + text
    ids = tokenizer.encode(first.after + text, add_special_tokens=False).ids
    if first.after:
        ids = ids[len(tokenizer.encode(first.after, add_special_tokens=False).ids) :]
    return list(ids)


def words(item: LayoutItem, question: str, visual: Visual | None, number: int = 0) -> str:
    """What is known at run time: a user's text, times of a clip, the number of an image."""
    if item.kind == "text":
        return ""
    if item.kind == "number":
        return str(number)
    if item.kind in RUN_TIME or visual is None:
        return trimmed(question, item.trim)
    if item.kind == "timestamp":
        seconds = int(visual.times[item.start])
        return f"{seconds // 60:02d}:{seconds % 60:02d}"
    if item.kind == "seconds":
        return f"{(visual.times[item.start] + visual.times[item.stop - 1]) / 2:.1f}"
    seconds = int(visual.duration)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def check_length(tokenizer: Tokenizer, text: str, room: int, of: str) -> None:
    """Refuse a text that cannot fit, after as much of it as shows that.

    Args:
        tokenizer: The bundle's tokenizer.
        text: The user's text.
        room: Tokens that are free.
        of: The context, as the end of an error.

    Raises:
        InputError: With the number of tokens that it has at least.
    """
    tokens = 0
    for start in range(0, len(text) if len(text) > PIECE else 0, PIECE):
        piece = tokenizer.encode(text[start : start + PIECE], add_special_tokens=False)
        tokens += max(0, len(piece.ids) - SLACK)
        if tokens > room:
            raise InputError(f"the turn has more than {tokens} tokens, {of}")


def claim(text: str, row_bytes: int, shortage: Callable[[int], int]) -> None:
    """Make room for the tokens of a text and the rows of a turn.

    Args:
        text: The user's text.
        row_bytes: Bytes of all rows of the turn.
        shortage: (bytes) -> bytes that a budget lacks.

    Raises:
        InputError: If it does not fit a memory budget.
    """
    size = TOKENIZER_BYTES * len(text.encode()) + row_bytes
    if missing := shortage(size):
        more = -(-missing // 10**6)
        raise InputError(
            f"the prompt of {len(text):,} letters takes {-(-size // 10**6)} MB to tokenize,"
            f" {more} MB more than the memory budget leaves; raise --memory by {more} MB"
        )
