"""Two profiles side by side: the ratio of each function and of the whole, and what else differs."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.profiling.document import PARTS, Profile
from edgevlm.profiling.report.charts import bar
from edgevlm.profiling.report.html import page, rows, tag
from edgevlm.profiling.report.page import MEANING, milliseconds
from edgevlm.units import megabytes

# A block is marked from here on: medians of a quiet machine repeat within a few per cent.
SLOWER = 1.2
FIELDS = ("machine", "engine_version", "threads", "recipe", "device", "budget_bytes", "question")


@dataclass(frozen=True)
class Row:
    """One figure of both; None where one has none. `ratio` is B / A.

    Attributes:
        name: What it is.
        a: In A.
        b: In B.
        ratio: B / A.
        slower: Whether it is a time that grew by more than a fifth.
    """

    name: str
    a: float | None
    b: float | None
    ratio: float | None
    slower: bool


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        a: Name of A.
        b: Name of B.
        same: For each condition whether both have the same.
        blocks: Milliseconds of one run of each function.
        stages: Milliseconds of one answer by what they went into.
        totals: Whole answers: `_ms`, `_bytes` or `_per_s` by the name.
        slower: Functions that are marked.
    """

    a: str
    b: str
    same: dict[str, bool]
    blocks: tuple[Row, ...]
    stages: tuple[Row, ...]
    totals: tuple[Row, ...]
    slower: tuple[str, ...]

    @property
    def note(self) -> str:
        """One sentence: what is the same, and what is not."""
        other = [_words(name) for name, same in self.same.items() if not same]
        if not other:
            return "same machine, engine, threads, recipe, budget and question"
        return "not the same: " + ", ".join(other)


def compare(a: Profile, b: Profile, names: tuple[str, str]) -> Comparison:
    """Put B beside A."""
    runs = [
        {f"{x.name}.{x.function}": x.run_ms.median for x in p.blocks if x.run_ms} for p in (a, b)
    ]
    blocks = tuple(
        _row(n, runs[0].get(n), runs[1].get(n)) for n in dict.fromkeys([*runs[0], *runs[1]])
    )
    loads = [sum(x.load_ms.median for x in p.blocks if x.load_ms) for p in (a, b)]
    totals = (
        _row("end_to_end_ms", a.end_to_end_ms.median, b.end_to_end_ms.median),
        _row("ttft_ms", a.ttft_ms, b.ttft_ms),
        _row("token_ms", a.token_ms.median, b.token_ms.median),
        _row("decode_tokens_per_s", a.decode_tokens_per_s, b.decode_tokens_per_s),
        _row("load_ms", *loads),
        _row("peak_rss_bytes", a.peak_rss_bytes, b.peak_rss_bytes),
        _row("peak_footprint_bytes", a.peak_footprint_bytes, b.peak_footprint_bytes),
        _row("weights_bytes", a.card.weights_bytes, b.card.weights_bytes),
        _row("energy_joules", a.energy_joules, b.energy_joules),
    )
    return Comparison(
        a=names[0],
        b=names[1],
        same={name: getattr(a, name) == getattr(b, name) for name in FIELDS},
        blocks=blocks,
        stages=tuple(_row(n, a.stages[n].median, b.stages[n].median) for n in PARTS),
        totals=totals,
        slower=tuple(row.name for row in blocks if row.slower),
    )


def comparison_page(found: Comparison) -> str:
    """The page of a comparison."""
    most = max((x for row in found.blocks for x in (row.a, row.b) if x is not None), default=1.0)
    head = [("block", "name"), ("A over B", "bars"), ("A ms", "n"), ("B ms", "n"), ("B / A", "n")]
    lines: list[list[str]] = []
    for row in found.blocks:
        pair = tag(
            "div", bar((row.a or 0.0) / most, "host"),
            bar((row.b or 0.0) / most, "prefill" if row.slower else "vision"),
        )  # fmt: skip
        lines.append([row.name, pair, *_cells(row)])
    plain = [("", "name"), ("A", "n"), ("B", "n"), ("B / A", "n")]
    marked = [
        tag("p", tag("b", "Slower by more than a fifth: "), ", ".join(found.slower), class_="note")
    ]
    return page(
        "edgevlm compare",
        tag("h1", f"{found.b} beside {found.a}"),
        tag("p", f"A is {found.a}, B is {found.b}; {found.note}.", class_="soft small"),
        *(marked if found.slower else []),
        tag("h2", "Whole answers"),
        rows(plain, [[_words(row.name), *_cells(row)] for row in found.totals]),
        tag("h2", "Where the time goes"),
        rows(plain, [[MEANING[row.name], *_cells(row)] for row in found.stages]),
        tag("h2", "Blocks, one run"),
        rows(head, lines),
    )


def figure(row: Row, value: float | None) -> str:
    """A figure in the unit that its name has."""
    if value is None:
        return "-"
    if row.name.endswith("_bytes"):
        return megabytes(value) + " MB"
    if row.name.endswith("_per_s"):
        return f"{value:,.1f}"
    return milliseconds(value)


def _cells(row: Row) -> list[str]:
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    marked: str = tag("span", f"{ratio} slower", class_="bad") if row.slower else ratio
    return [figure(row, row.a), figure(row, row.b), marked]


def _row(name: str, a: float | None, b: float | None) -> Row:
    ratio = None if a is None or b is None or a <= 0 else round(b / a, 4)
    timed = not name.endswith(("_bytes", "_per_s", "_joules"))
    return Row(name, a, b, ratio, timed and ratio is not None and ratio > SLOWER)


def _words(name: str) -> str:
    return name.removesuffix("_bytes").removesuffix("_version").replace("_", " ")
