"""What the checkpoint's chat template writes around the question, images, a system text, a reply.

The template is rendered once, at plan time, with marks where run-time text goes: a device then
needs neither Jinja nor the template. It is the one that the checkpoint's own processor would take,
with the special tokens that its tokenizer names. Where it does more with a question than take white
space off its ends, no fixed text can say so, and the checkpoint is refused. What it does with a
system text, and with texts and images in any order, is tried too; where that cannot be said, the
bundle takes no system text, or no such prompt.

A text with marks is a list of parts, of which those of an image take the placeholder's place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from edgevlm.bundle.host import SIDES, LayoutItem
from edgevlm.errors import ModelError
from edgevlm.models import templates
from edgevlm.models.family import TABLE_ROW, Description
from edgevlm.models.processor import chat_template
from edgevlm.runtimes.loops.spelling import Visual, trimmed, words

# Private-use characters: no tokenizer text and no question holds them.
QUESTION, REPLY, SYSTEM = "\ue000", "\ue001", "\ue002"
# Questions that a filter of a template would change.
PROBES = (
    "  What is\tthis? \n", "\n\nA Question, IN CAPITALS\n- one\n- two  ", "", "   ", "7",
    "a <b>&amp;</b> \"c\" 'd' \\n {{ e }} {% f %} ﬁ é e\u0301 漢字 🙂", "A  wide   gap, " * 200,
)  # fmt: skip
# System texts: a loop takes no blank one, which many a template leaves out.
SYSTEM_PROBES = tuple(probe for probe in PROBES if probe.strip())
# First turns of texts (T) and images (I): every pair of neighbours, at every distance from the end.
MIXTURES = ("TI", "TT", "TIT", "ITI", "TITIT", "ITTI", "TIITTTI", "ITIITIT")
# Forms of a system message's content. A template made for a language model, such as Qwen3's
# (`messages[0].content + ...`), takes a plain text alone.
FORMS: tuple[Callable[[str], Any], ...] = (lambda text: [{"type": "text", "text": text}], str)
FIXED = ("ids", "visual", "text")  # items of which nothing is known at run time alone
# Stands for a clip where its times are asked for.
CLIP = Visual(np.zeros((0, 0), np.float32), np.zeros(0, np.int32), (41.5,) * 4096, 125.9)


@dataclass(frozen=True)
class SystemTexts:
    """First turns with a system text, which change nothing from the image or the question on.

    Attributes:
        first: One with an image; `SYSTEM` marks the system text.
        plain: One without.
        trim: Sides at which the template takes white space off the system text.
        form: Makes the content of a message of a text, one of `FORMS`.
    """

    first: str
    plain: str
    trim: str
    form: Callable[[str], Any]


@dataclass(frozen=True)
class Joints:
    """Text between two texts, between a text and an image, and behind an image that is last."""

    text_text: str
    text_image: str
    image_end: str


@dataclass(frozen=True)
class Prompts:
    """Texts with marks: `QUESTION` where the question goes, `REPLY` where an answer stands.

    Attributes:
        first: A first turn with an image, for which the family's placeholder stands.
        plain: A first turn without one.
        both: A first turn, its reply, and a further turn.
        between: Text between two images; None where the template has no place for a second one.
        trim: Sides at which the template takes white space off a question behind an image.
        plain_trim: The same of a question alone: a template may trim a whole message (Qwen3.5).
        system: Openings with a system text; None where the template has no place for one.
        joints: What else stands between texts and images in any order; None where the template has
            an order of its own.
    """

    first: str
    plain: str
    both: str
    between: str | None
    trim: str
    plain_trim: str
    system: SystemTexts | None = None
    joints: Joints | None = None

    def further(self) -> str:
        """A further turn: what follows the reply."""
        return self.both.partition(REPLY)[2]

    def mixture(self, order: str, mark: str) -> str:
        """A first turn of texts (T) and images (I), for which `mark` stands."""
        assert self.joints is not None
        opening, _, rest = self.first.partition(mark)
        image_text, _, end = rest.partition(QUESTION)
        joints = {
            "^I": opening, "^T": self.plain.partition(QUESTION)[0], "II": self.between or "",
            "IT": image_text, "TI": self.joints.text_image, "TT": self.joints.text_text,
            "T$": end, "I$": self.joints.image_end,
        }  # fmt: skip
        shown = {"I": mark, "T": QUESTION, "$": ""}
        pairs = pairwise(f"^{order}$")
        return "".join(joints[left + right] + shown[right] for left, right in pairs)


@dataclass(frozen=True)
class Part:
    """A stretch of a turn's text; `item` is None where it is fixed, `inside` one of an image."""

    text: str
    item: LayoutItem | None = None
    inside: bool = False


@dataclass(frozen=True)
class _Template:
    """A template, the names of its special tokens, and the kind of its images."""

    source: str
    names: dict[str, str]
    content_type: str

    def texts(self, chats: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
        # Imported here: transformers is heavy and only plans need it.
        from transformers.utils.chat_template_utils import render_jinja_template

        with templates.limited():
            rendered, _ = render_jinja_template(
                list(chats), chat_template=self.source, add_generation_prompt=True, **self.names
            )
        return list(rendered)

    def turns(self, question: str, system: Sequence[dict[str, Any]] = ()) -> list[str]:
        """Texts of a first turn with an image, of one without, and of two turns."""
        reply = {"role": "assistant", "content": [{"type": "text", "text": REPLY}]}
        first, plain = self.user("IT", question), self.user("T", question)
        return self.texts([[*system, first], [*system, plain], [*system, first, reply, plain]])

    def user(self, order: str, text: str = QUESTION) -> dict[str, Any]:
        """A user's message: images (I), and the text (T) as often as it is named."""
        parts = {"I": {"type": self.content_type}, "T": {"type": "text", "text": text}}
        return {"role": "user", "content": [parts[kind] for kind in order]}


def render_prompts(description: Description, processor: Any) -> Prompts:
    """The texts of a checkpoint's turns.

    Raises:
        ModelError: If the template does not render, loses the question or the image, or does with a
            question what no layout can say.
    """
    mark = description.placeholder
    source = description.chat_template or chat_template(processor)
    if source is None:
        both = f"{mark}{QUESTION}{REPLY}\n{QUESTION}"
        return Prompts(f"{mark}{QUESTION}", QUESTION, both, between="", trim="", plain_trim="")
    templates.check(source)
    if "strftime_now" in source:
        raise ModelError(
            "the chat template writes today's date (strftime_now), and prompts are fixed;"
            " put a date into it"
        )
    names = processor.tokenizer.special_tokens_map
    template = _Template(source, names, description.content_type)
    first, plain, both = texts = template.turns(QUESTION)
    written = f"{first}{both.partition(REPLY)[2]}"
    if first.count(mark) != 1 or QUESTION not in written:
        raise ModelError(
            f"the chat template must write '{mark}' once and the question; it wrote {first!r}"
        )
    if both.count(REPLY) != 1 or any(text.count(QUESTION) > 1 for text in (first, plain)):
        raise ModelError(f"the chat template must write a question and a reply once, not {both!r}")
    probed = [template.turns(probe) for probe in PROBES]
    behind, *behind_probes = [[seen, two.partition(REPLY)[0]] for seen, _, two in (texts, *probed)]
    alone, *alone_probes = [[one, two.partition(REPLY)[2]] for _, one, two in (texts, *probed)]
    trim = _trim(QUESTION, behind, PROBES, behind_probes)
    plain_trim = _trim(QUESTION, alone, PROBES, alone_probes)
    if trim is None or plain_trim is None:
        raise ModelError(
            "the chat template changes the question, or goes by what it says; only white space at"
            f" its ends can be taken off: of {PROBES[0]!r} it made {probed[0][1]!r}"
        )
    made = Prompts(first, plain, both, _between(template, mark, first), trim, plain_trim)
    return replace(made, system=_system(template, mark, made), joints=_joints(template, mark, made))


def marked(text: str, prompts: Prompts, trim: str) -> list[Part]:
    """Fixed text, texts of a user without white space at the sides `trim`, and a reply."""
    items = {
        QUESTION: LayoutItem("user_text", trim=trim),
        REPLY: LayoutItem("reply"),
        SYSTEM: LayoutItem("system_text", trim=prompts.system.trim if prompts.system else ""),
    }
    found = re.split(f"([{QUESTION}{REPLY}{SYSTEM}])", text)
    return [Part(part, items.get(part)) for part in found if part]


def image_parts(image: Sequence[str | LayoutItem], placeholder: str, vocabulary: int) -> list[Part]:
    """The parts of one image or clip; an extra row of the table follows the words.

    An item `text` is its `prefix`, whose ids are to have the item's places.
    """
    parts: list[Part] = []
    for item in image:
        if isinstance(item, str):
            parts.append(Part(item, inside=True))
        elif item.kind == TABLE_ROW:
            row = LayoutItem("ids", ids=(vocabulary + item.start,))
            parts.append(Part(placeholder, row, inside=True))
        elif item.kind == "visual":
            parts.append(Part(placeholder, item, inside=True))
        elif item.kind == "text":
            parts.append(Part(item.prefix, item, inside=True))
        else:
            bare = replace(item, prefix="", suffix="")
            parts += [Part(item.prefix, inside=True), Part(QUESTION, bare, inside=True)]
            parts.append(Part(item.suffix, inside=True))
    return parts


def text_of(parts: Sequence[Part], question: str = QUESTION, known: bool = False) -> str:
    """The text of all parts; with what is `known` at run time in place of its marks."""
    text, images = "", 0
    for part in parts:
        if known and part.item is not None and part.item.kind not in FIXED:
            text += words(part.item, question, CLIP, images)
            images += part.item.kind == "number"
        else:
            text += part.text
    return text


def stretch(parts: Sequence[Part], start: int, stop: int) -> list[Part]:
    """The parts of a range of the text, the first and the last one cut."""
    found, at = [], 0
    for part in parts:
        if text := part.text[max(start - at, 0) : max(stop - at, 0)]:
            found.append(replace(part, text=text))
        at += len(part.text)
    return found


def _trim(
    mark: str, texts: Sequence[str], probes: Sequence[str], probed: Sequence[Sequence[str]]
) -> str | None:
    """Sides at which a template takes white space off what `mark` stands for; None if it does else.

    Args:
        mark: The mark.
        texts: Texts with it.
        probes: What is put in its place.
        probed: The same texts for each probe.
    """
    for trim in SIDES:
        if all(
            [text.replace(mark, trimmed(probe, trim)) for text in texts] == list(made)
            for probe, made in zip(probes, probed, strict=True)
        ):
            return trim
    return None


def _between(template: _Template, mark: str, first: str) -> str | None:
    """What a template writes between images; None if it refuses several, or numbers them."""
    before, _, after = first.partition(mark)
    try:
        two, three = template.texts([[template.user("IIT")], [template.user("IIIT")]])
    except ModelError:  # many a template raises an error of its own
        return None
    start, end = f"{before}{mark}", f"{mark}{after}"
    between = two[len(start) : len(two) - len(end)]
    written = two, three, mark in between
    expected = f"{start}{between}{end}", f"{start}{between}{mark}{between}{end}", False
    return between if written == expected else None


def _system(template: _Template, mark: str, prompts: Prompts) -> SystemTexts | None:
    """Turns with a system text; None if the template refuses, loses or changes it.

    It must not change what follows the opening either, further turns among it.
    """
    texts = prompts.first, prompts.plain, prompts.both
    first = f"{re.escape(mark)}|{QUESTION}"
    rests = [text[len(re.split(first, text, maxsplit=1)[0]) :] for text in texts]
    for form in FORMS:

        def turns(system: str, form: Callable[[str], Any] = form) -> list[str]:
            return template.turns(QUESTION, [{"role": "system", "content": form(system)}])

        try:
            made = turns(SYSTEM)
            probed = [turns(probe) for probe in SYSTEM_PROBES]
        except ModelError:
            continue
        openings = [text.removesuffix(rest) for text, rest in zip(made, rests, strict=True)]
        whole = [opening + rest for opening, rest in zip(openings, rests, strict=True)] == made
        once = all(opening.count(SYSTEM) == 1 for opening in openings)
        trim = _trim(SYSTEM, made, SYSTEM_PROBES, probed)
        if whole and once and openings[2] == openings[0] and trim is not None:
            return SystemTexts(made[0], made[1], trim, form)
    return None


def _joints(template: _Template, mark: str, prompts: Prompts) -> Joints | None:
    """What stands between texts and images; None if that depends on more than two neighbours."""
    opening, _, end = prompts.plain.partition(QUESTION)
    if prompts.between is None:
        return None
    try:
        mixed, double = template.texts([[template.user("TI")], [template.user("TT")]])
        text_image, _, image_end = mixed.removeprefix(opening + QUESTION).partition(mark)
        text_text = double.removeprefix(opening + QUESTION).removesuffix(QUESTION + end)
        made = replace(prompts, joints=Joints(text_text, text_image, image_end))
        for text in (QUESTION, *PROBES):
            shown = trimmed(text, prompts.trim)
            written = template.texts([[template.user(order, text)] for order in MIXTURES])
            expected = [made.mixture(order, mark).replace(QUESTION, shown) for order in MIXTURES]
            if written != expected:
                return None
    except ModelError:
        return None
    return made.joints
