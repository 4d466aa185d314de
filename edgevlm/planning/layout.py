"""The layout of a prompt: token ids where its text is fixed, runs of text where it is not.

    1. The text of a whole turn, with marks for what is known at run time and a placeholder for
       visual tokens, is tokenized by the checkpoint's own tokenizer in one call.
    2. It is cut at the added tokens of that call, where a tokenizer cuts before anything else.
       Fixed text between two of them keeps the ids of the call; text with a mark, or across the
       border of an image, becomes a run, which a device tokenizes.
    3. For odd questions the ids of the layout are compared with those of one call over the text.

A tokenizer that does more than a layout can say differs in step 3, and the checkpoint is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile

from edgevlm.bundle.host import Layout, LayoutItem
from edgevlm.errors import ModelError
from edgevlm.models.family import Description
from edgevlm.models.speller import Speller
from edgevlm.planning.prompt import (
    CLIP,
    MIXTURES,
    PROBES,
    QUESTION,
    REPLY,
    Part,
    Prompts,
    image_parts,
    marked,
    stretch,
    text_of,
)
from edgevlm.runtimes.loops.spelling import TIMES, Slot, bare, first_turn, spell

# A reply may end in what its tokenizer joins to the next turn; then another one shows the border.
REPLIES = ("A pot of flowers", "A pot of flowers.", "It is 7")
MARKED = ("image", "user_text")  # items at which a turn's opening ends
NOTHING = Layout((), (), (), ())


@dataclass(frozen=True)
class _Turns:
    """The texts of turns, with the parts of an image in place of the placeholder `mark`."""

    prompts: Prompts
    mark: str
    image: Sequence[Part]
    speller: Speller

    def parts(self, text: str) -> list[Part]:
        trim = self.prompts.trim if self.mark in text else self.prompts.plain_trim
        first, *others = [marked(piece, self.prompts, trim) for piece in text.split(self.mark)]
        return first + [part for other in others for part in (*self.image, *other)]

    def items(self, text: str) -> list[tuple[bool, LayoutItem]]:
        return _items(self.parts(text), self.speller)

    def check(self, text: str, layout: Layout, order: str, system: bool = False) -> None:
        """Compare the ids of a layout, for odd questions, with those of one call over the text.

        `order` has the turn's texts (T) and images (I); `system` says whether there is a system
        text.

        Raises:
            ModelError: If one differs.
        """
        speller, parts = self.speller, self.parts(text)
        for probe in PROBES:
            expected = speller.ids(text_of(parts, probe, known=True))
            texts = [None if kind == "I" else probe for kind in order]
            items = first_turn(layout, texts, probe if system else None)
            actual = _spelled(items, layout, order.count("I"), probe, speller)
            if actual != expected:
                pairs = enumerate(zip(actual, expected, strict=False))
                differs = next((index for index, pair in pairs if len(set(pair)) > 1), -1)
                raise ModelError(
                    "the tokenizer cuts a prompt's text otherwise as a whole than in parts: asked"
                    f" {probe[:40]!r}, token {differs} is"
                    f" {speller.own.convert_ids_to_tokens(expected[differs])!r} of the whole text;"
                    " no layout can say so"
                )


def make_layout(
    description: Description, prompts: Prompts, speller: Speller, reduced: bool
) -> Layout:
    """Items of a first turn with and without an image, of one image, and of a further turn.

    Where the template has a place for them, also what a second image, a system text, and texts and
    images in any order need.

    Args:
        description: The family's numbers.
        prompts: What the chat template writes.
        speller: The checkpoint's tokenizer.
        reduced: Whether a method removes tokens.

    Raises:
        ModelError: If a token of the prompt has no row, or the tokenizer does what no layout says.
    """
    image = description.reduced_image if reduced else description.full_image
    shown = image_parts(image, speller.placeholder, speller.vocabulary)
    mark = description.placeholder
    turns = _Turns(prompts, mark, shown, speller)
    items = turns.items(prompts.first)
    layout = Layout(
        prompt=_started(text_of(turns.parts(prompts.first)), _outside(items), speller),
        image=_merged([item for inside, item in items if inside]),
        text=(),
        turn=(),
    )
    turns.check(prompts.first, layout, "IT")
    timed = any(item.kind in TIMES for item in layout.image)
    if prompts.between is None:
        layout = replace(layout, one_image=True)
    else:
        two = prompts.first.replace(mark, f"{mark}{prompts.between}{mark}")
        layout = replace(layout, between=_between(turns.items(two)))
        if not timed:
            turns.check(two, layout, "IIT")
    if not description.chats:
        return layout
    text = _started(prompts.plain, _outside(turns.items(prompts.plain)), speller)
    layout = replace(layout, text=text, turn=_further(prompts, speller))
    turns.check(prompts.plain, layout, "T")
    layout = _with_system(layout, turns)
    # The frames of a clip have one place.
    return layout if description.image.frames > 1 else _with_mixtures(layout, turns)


def _with_system(layout: Layout, turns: _Turns) -> Layout:
    """The layout with openings that have a system text; without, where no layout can say them."""
    system, openings = turns.prompts.system, []
    if system is None:
        return layout
    try:
        for text in (system.first, system.plain):
            items = bare(_outside(turns.items(text)))
            opening = takewhile(lambda item: item.kind not in MARKED, items)
            openings.append(_started(text, list(opening), turns.speller))
        made = replace(layout, prompt_system=openings[0], text_system=openings[1])
        turns.check(system.first, made, "IT", system=True)
        turns.check(system.plain, made, "T", system=True)
    except ModelError:
        return layout
    return made


def _with_mixtures(layout: Layout, turns: _Turns) -> Layout:
    """The layout for texts and images in any order; without, where no layout can say them."""
    prompts, mark = turns.prompts, turns.mark
    if prompts.joints is None:
        return layout
    try:
        items = bare(_outside(turns.items(prompts.mixture("TTI", mark))))
        first, second, image = [i for i, item in enumerate(items) if item.kind in MARKED]
        made = replace(
            layout,
            mixes=True,
            text_text=_merged(items[first + 1 : second]),
            text_image=_merged(items[second + 1 : image]),
            image_end=_merged(items[image + 1 :]),
        )
        for order in MIXTURES:
            turns.check(prompts.mixture(order, mark), made, order)
    except ModelError:
        return layout
    return made


def _outside(items: Sequence[tuple[bool, LayoutItem]]) -> list[LayoutItem]:
    """Items of a turn, with one in place of those of an image."""
    outside = [item for inside, item in items if not inside]
    at = next((index for index, (inside, _) in enumerate(items) if inside), None)
    return outside if at is None else [*outside[:at], LayoutItem("image"), *outside[at:]]


def _between(items: Sequence[tuple[bool, LayoutItem]]) -> tuple[LayoutItem, ...]:
    """The items between two images, from those of a whole turn."""
    runs = [(inside, [item for _, item in run]) for inside, run in groupby(items, lambda i: i[0])]
    images = [index for index, (inside, _) in enumerate(runs) if inside]
    return _merged(runs[images[0] + 1][1]) if len(images) == 2 else ()


def _items(parts: Sequence[Part], speller: Speller) -> list[tuple[bool, LayoutItem]]:
    """Items of a whole turn, each with whether it is an image's."""
    items: list[tuple[bool, LayoutItem]] = []
    begin, fixed, before, text = 0, list[int](), None, text_of(parts)
    last = (-1, (len(text), len(text)), None)
    for number, (start, stop), token in [*speller.tokens(text), last]:
        if token is None and number >= 0:
            fixed.append(number)
            continue
        within = stretch(parts, begin, start)
        known = all(part.item is None or part.item.kind == "text" for part in within)
        if not known or len({part.inside for part in within}) > 1:
            blank = begin == 0 and speller.first_word_blank
            left, right = before is not None and before.rstrip, token is not None and token.lstrip
            items += _run(within, left, right, blank)
        elif fixed:
            items.append((within[0].inside, _fixed(within[0], fixed, speller)))
        if token is None:
            break
        # The token's range may hold white space that it took from beside it.
        part = next(p for p in stretch(parts, start, stop) if p.text.strip() or p.item)
        items.append((part.inside, _fixed(part, [number], speller)))
        begin, fixed, before = stop, [], token
    return items


def _fixed(part: Part, ids: Sequence[int], speller: Speller) -> LayoutItem:
    """The item of a part whose ids are fixed: its own, or these ids, with places if it has any."""
    if part.item is not None and part.item.kind != "text":
        return part.item
    return replace(part.item or LayoutItem("ids"), kind="ids", ids=speller.rows(ids), prefix="")


def _run(
    parts: Sequence[Part], left: bool, right: bool, blank: bool
) -> list[tuple[bool, LayoutItem]]:
    """Items of a run between two special tokens, which may take white space at its sides."""
    items: list[tuple[bool, LayoutItem]] = []
    for inside, group in groupby(parts, key=lambda part: part.inside):
        text, marks = "", list[LayoutItem]()
        for part in group:
            if part.item is None:
                text += part.text
                continue
            marks.append(replace(part.item, prefix=text))
            text = ""
        if not marks:
            marks = [LayoutItem("text", prefix=text)]
        elif text:
            marks[-1] = replace(marks[-1], suffix=text)
        items += [(inside, item) for item in marks]
    sides = [["", "left"][left], ["", "right"][right]]
    if len(items) == 1:
        sides = ["both" if left and right else "".join(sides)] * 2
    items[0] = items[0][0], replace(items[0][1], strip=sides[0], blank=blank)
    items[-1] = items[-1][0], replace(items[-1][1], strip=sides[1])
    return items


def _merged(items: Sequence[LayoutItem]) -> tuple[LayoutItem, ...]:
    """Neighbouring ids are one item."""
    merged: list[LayoutItem] = []
    for item in items:
        plain = [one.kind == "ids" and not one.places for one in (item, *merged[-1:])]
        if len(plain) == 2 and all(plain):
            merged[-1] = replace(merged[-1], ids=merged[-1].ids + item.ids)
        else:
            merged.append(item)
    return tuple(merged)


def _started(text: str, items: list[LayoutItem], speller: Speller) -> tuple[LayoutItem, ...]:
    """Items of a first turn, after the ids that the tokenizer puts in front of it."""
    start = speller.start(text)
    return _merged([LayoutItem("ids", ids=start), *items] if start else items)


def _further(prompts: Prompts, speller: Speller) -> tuple[LayoutItem, ...]:
    """Items of a further turn: what follows the reply, whose ids are in the cache already.

    A tokenizer that puts a blank in front of every text gives one to a run that begins within one.
    Then the run is tokenized behind another reply.
    """
    parts = marked(prompts.both, prompts, prompts.plain_trim)
    items = [item for _, item in _items(parts, speller)]
    (at,) = [index for index, item in enumerate(items) if item.kind == "reply"]
    answered, rest = items[at], items[at + 1 :]
    if answered.suffix:
        rest.insert(0, LayoutItem("text", prefix=answered.suffix, strip=answered.strip))
    choices = [rest, *([replace(rest[0], after=reply), *rest[1:]] for reply in REPLIES)]
    for choice in choices:
        if any(_follows(choice, prompts, speller, answer) for answer in REPLIES):
            return _merged(choice)
    raise ModelError(
        "the tokenizer cuts a further turn otherwise behind a reply than alone; no layout says so"
    )


def _follows(items: Sequence[LayoutItem], prompts: Prompts, speller: Speller, reply: str) -> bool:
    """Whether ids of a first turn, of a reply and of these items are those of one call."""
    before, _, after = prompts.both.partition(REPLY)
    before = before.replace(QUESTION, "Why?") + reply
    turn = marked(after, prompts, prompts.plain_trim)
    return all(
        speller.ids(before + text_of(turn, probe, known=True))
        == speller.ids(before) + _spelled(items, NOTHING, 0, probe, speller)
        for probe in PROBES
    )


def _spelled(
    items: Sequence[LayoutItem], layout: Layout, images: int, question: str, speller: Speller
) -> list[int]:
    """Ids of a turn by its layout, with the placeholder's id for visual tokens and extra rows."""
    ids: list[int] = []
    for part in spell(items, layout, speller.bundled, question, [CLIP] * images):
        ids += [speller.slot] if isinstance(part, Slot) else part
    return [i if i < speller.vocabulary else speller.slot for i in ids]
