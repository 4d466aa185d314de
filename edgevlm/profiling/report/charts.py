"""Charts for our pages: lanes of a timeline, memory below it, curves. SVG without text.

A drawing is stretched to the available width, so its labels are HTML beside it and keep their size
on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgevlm.profiling.report.html import Html, tag
from edgevlm.profiling.sections import Event, Timeline
from edgevlm.profiling.stages import colour, time_shares

HEIGHT, TICKS = 18, 5


def lanes(kind: str, timeline: Timeline, budget_bytes: int | None) -> Html:
    """A lane for each stage's runs, one for loads and one for evictions, and the memory below."""
    rows: list[Html] = []
    for name in ("load", *(share.name for share in time_shares(kind) if share.stage), "evict"):
        events = [e for e in timeline.events if name == (e.stage if e.kind == "run" else e.kind)]
        if events:
            rows += [tag("span", name), _lane(events, timeline.ms)]
    if timeline.memory:
        most = max(sample.rss_bytes for sample in timeline.memory)
        label = tag("span", "memory", tag("br"), f"to {most / 1e6:,.0f} MB")
        rows += [label, _memory(timeline, budget_bytes)]
    rows += [tag("span"), axis(timeline.ms)]
    return tag("div", *rows, class_="lanes")


def axis(ms: float) -> Html:
    """Round times under a lane, and the unit at its end."""
    size = 10.0 ** math.floor(math.log10(ms or 1.0))
    step = next(x * size for x in (0.2, 0.5, 1.0, 2.0, 5.0) if x * size * TICKS >= ms)
    at = [step * i for i in range(TICKS + 1) if step * i < 0.9 * ms]
    digits = max(0, -math.floor(math.log10(step)))
    marks = [tag("span", f"{t:,.{digits}f}", style=f"left:{100 * t / ms:.3f}%") for t in at]
    return tag("div", *marks, tag("b", "ms"), class_="axis")


def curve(points: Sequence[tuple[float, float]], name: str, height: int = 90) -> Html:
    """A line over x, from zero up."""
    top = 1.05 * max((y for _, y in points), default=1.0) or 1.0
    end = max((x for x, _ in points), default=1.0) or 1.0
    path = " ".join(
        f"{'M' if i == 0 else 'L'}{x / end * 1000:.1f} {height * (1 - y / top):.1f}"
        for i, (x, y) in enumerate(points)
    )
    line = tag(
        "path", d=path, fill="none", stroke="var(--blue)", stroke_width=2,
        vector_effect="non-scaling-stroke",
    )  # fmt: skip
    return _drawing(1000, height, height, tag("title", name), line)


def split(shares: Sequence[tuple[str, float]]) -> Html:
    """One bar divided by (time share, amount)."""
    total = sum(amount for _, amount in shares) or 1.0
    segments = [
        tag("i", title=name, style=f"width:{100 * amount / total:.3f}%;background:{colour(name)}")
        for name, amount in shares
        if amount > 0
    ]
    return tag("div", *segments, class_="split")


def bar(fraction: float, name: str = "vision") -> Html:
    """A bar over a fraction of the width, in the colour of a time share."""
    width = 100 * min(1.0, max(0.0, fraction))
    return tag("span", class_="bar", style=f"width:{width:.2f}%;background:{colour(name)}")


def _lane(events: Sequence[Event], ms: float) -> Html:
    drawn = [
        tag(
            "rect",
            tag("title", f"{e.kind} {e.block} {e.function}: {e.ms:.2f} ms at {e.start_ms:.2f}"),
            x=f"{e.start_ms / ms * 1000:.3f}",
            y=2,
            # At least a third of a pixel of a wide screen, so that a short run stays visible.
            width=f"{max(e.ms / ms * 1000, 0.4):.3f}",
            height=HEIGHT - 4,
            fill=colour(e.stage),
        )
        for e in events
    ]
    return _drawing(1000, HEIGHT, HEIGHT, *drawn)


def _memory(timeline: Timeline, budget_bytes: int | None) -> Html:
    height, samples = 80, timeline.memory
    top = 1.08 * max(budget_bytes or 0, max(s.rss_bytes for s in samples))

    def at(ms: float, size: int) -> str:
        return f"{ms / timeline.ms * 1000:.2f} {height * (1 - size / top):.2f}"

    line = " L".join(at(s.ms, s.rss_bytes) for s in samples)
    first, last = at(0.0, samples[0].rss_bytes), at(timeline.ms, samples[-1].rss_bytes)
    drawn = [
        tag("title", "resident memory of the process, from zero"),
        tag(
            "path", d=f"M0 {height} L{first} L{line} L{last} L1000 {height} Z",
            fill="var(--sky)", fill_opacity=0.45, stroke="none",
        ),
    ]  # fmt: skip
    if budget_bytes:
        y = f"{height * (1 - budget_bytes / top):.2f}"
        drawn.append(
            tag(
                "line", x1=0, x2=1000, y1=y, y2=y, stroke="var(--bad)", stroke_width=2,
                stroke_dasharray="6 4", vector_effect="non-scaling-stroke",
            )
        )  # fmt: skip
    return _drawing(1000, height, height, *drawn)


def _drawing(width: int, height: int, pixels: int, *inside: Html) -> Html:
    return tag(
        "svg", *inside, viewBox=f"0 0 {width} {height}", preserveAspectRatio="none",
        height=pixels, role="img",
    )  # fmt: skip
