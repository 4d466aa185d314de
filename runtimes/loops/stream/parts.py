"""The layout of a clip, cut for a stream: an opening, what each frame has, and a closing.

    opening   what stands in front of the first visual token
    frame     what stands between the tokens of the frame before and its own, and its own
    closing   what follows the last visual token: the question, and where the answer begins

A clip has P views; a further one stands as the last. So a text that counts frames goes on with the
last number, and one that says how long the clip is says it of P views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgevlm.bundle.host import LayoutItem
from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.errors import InputError
from edgevlm.runtimes.loops.spelling import first_turn

IMAGE = LayoutItem("image")


@dataclass(frozen=True)
class Part:
    """A part of a turn: its items, of which `IMAGE` stands for those of `plan.host.layout.image`.

    So the items of a frame are read with its times, as those of a clip are.
    """

    plan: VlmPlan
    items: tuple[LayoutItem, ...]


def opening(plan: VlmPlan, system: str | None = None) -> Part:
    """What stands in front of the first visual token."""
    items = first_turn(plan.host.layout, [None, ""], system)
    return _part(plan, _cut(plan)[0], items[: _image(items)], ())


def frames(plan: VlmPlan) -> tuple[Part, ...]:
    """What each view of a clip has; further ones have the last."""
    return tuple(_part(plan, shown, (), ()) for shown in _cut(plan)[1:-1])


def closing(plan: VlmPlan, question: str) -> Part:
    """What follows the last frame."""
    items = first_turn(plan.host.layout, [None, question])
    return _part(plan, _cut(plan)[-1], (), items[_image(items) + 1 :])


def _image(items: Sequence[LayoutItem]) -> int:
    return next(index for index, item in enumerate(items) if item.kind == "image")


def _part(
    plan: VlmPlan,
    shown: Sequence[LayoutItem],
    before: Sequence[LayoutItem],
    after: Sequence[LayoutItem],
) -> Part:
    layout = replace(plan.host.layout, image=tuple(shown))
    host = replace(plan.host, layout=layout)
    return Part(replace(plan, host=host), (*before, IMAGE, *after))


def _cut(plan: VlmPlan) -> list[list[LayoutItem]]:
    """The items of a clip: those before its tokens, of each view, and behind its tokens.

    Raises:
        InputError: If its frames lie in one grid of time, height and width.
    """
    host, size = plan.host, plan.host.encoder.view_tokens
    parts: list[list[LayoutItem]] = [[]]
    for item in host.layout.image:
        if item.kind != "visual":
            parts[-1].append(item)
            continue
        first, last = item.start // size, (item.stop - 1) // size
        if item.places and first != last:
            raise InputError(
                f"no stream: this {plan.source.family} model sees all frames of a clip as one grid"
                " of time, height and width"
            )
        for view in range(first, last + 1):
            start, stop = max(item.start, view * size), min(item.stop, (view + 1) * size)
            parts[-1].append(replace(item, start=start, stop=stop))
            if stop == (view + 1) * size:
                parts.append([])
    # What precedes the first tokens belongs to no frame: it stays when that frame goes.
    marks = next(index for index, item in enumerate(parts[0]) if item.kind == "visual")
    return [parts[0][:marks], parts[0][marks:], *parts[1:]]
