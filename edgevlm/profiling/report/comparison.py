"""Two profiles side by side: the ratio of each function and of the answers, and what differs."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.profiling.document import Profile
from edgevlm.profiling.report.charts import bar
from edgevlm.profiling.report.html import page, rows, tag
from edgevlm.profiling.stages import label, time_shares
from edgevlm.units import megabytes, milliseconds

# A block is marked from here on: medians of a quiet machine repeat within a few per cent.
SLOWER = 1.2
CONDITIONS = (
    "kind", "machine", "engine_version", "threads", "recipe", "device", "budget_bytes", "question",
)  # fmt: skip


@dataclass(frozen=True)
class ComparisonRow:
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
    """The result of `compare`.

    Attributes:
        a: Name of A.
        b: Name of B.
        same: For each condition whether both have the same.
        blocks: Milliseconds of one run of each function.
        stages: Milliseconds of one answer by time share.
        totals: Figures of whole answers: `_ms`, `_bytes` or `_per_s` by the name.
        slower: Functions that are marked.
    """

    a: str
    b: str
    same: dict[str, bool]
    blocks: tuple[ComparisonRow, ...]
    stages: tuple[ComparisonRow, ...]
    totals: tuple[ComparisonRow, ...]
    slower: tuple[str, ...]

    @property
    def note(self) -> str:
        """One line: the conditions that are the same, or those that are not."""
        other = [_words(name) for name, same in self.same.items() if not same]
        if not other:
            return "same kind, machine, engine, threads, recipe, device, budget and question"
        return "not the same: " + ", ".join(other)


def compare(a: Profile, b: Profile, names: tuple[str, str]) -> Comparison:
    """Compare B with A."""
    runs = [
        {f"{x.name}.{x.function}": x.run_ms.median for x in p.blocks if x.run_ms} for p in (a, b)
    ]
    blocks = tuple(
        _row(n, runs[0].get(n), runs[1].get(n)) for n in dict.fromkeys([*runs[0], *runs[1]])
    )
    return Comparison(
        a=names[0],
        b=names[1],
        same={name: getattr(a, name) == getattr(b, name) for name in CONDITIONS},
        blocks=blocks,
        stages=_stages(a, b),
        totals=_totals(a, b),
        slower=tuple(row.name for row in blocks if row.slower),
    )


def _stages(a: Profile, b: Profile) -> tuple[ComparisonRow, ...]:
    """The time shares of both kinds."""
    names = dict.fromkeys(share.name for p in (a, b) for share in time_shares(p.kind))
    medians = [{name: stat.median for name, stat in p.stages.items()} for p in (a, b)]
    return tuple(_row(name, medians[0].get(name), medians[1].get(name)) for name in names)


def _totals(a: Profile, b: Profile) -> tuple[ComparisonRow, ...]:
    """Figures that at least one of both has."""
    loads = [sum(x.load_ms.median for x in p.blocks if x.load_ms) for p in (a, b)]
    rows = (
        _row("end_to_end_ms", a.end_to_end_ms.median, b.end_to_end_ms.median),
        _row("ttft_ms", a.ttft_ms, b.ttft_ms),
        _row("token_ms", *(p.text.token_ms.median if p.text else None for p in (a, b))),
        _row("decode_tokens_per_s", a.decode_tokens_per_s, b.decode_tokens_per_s),
        _row("encode_ms", *(p.embedding.encode_ms.median if p.embedding else None for p in (a, b))),
        *(
            _row(name, *(getattr(p.video, name).median if p.video else None for p in (a, b)))
            for name in ("text_ms", "denoise_ms", "frames_ms")
        ),
        _row("load_ms", *loads),
        _row("peak_rss_bytes", a.peak_rss_bytes, b.peak_rss_bytes),
        _row("peak_footprint_bytes", a.peak_footprint_bytes, b.peak_footprint_bytes),
        _row("weights_bytes", a.card.weights_bytes, b.card.weights_bytes),
        _row("energy_joules", a.energy_joules, b.energy_joules),
    )
    return tuple(row for row in rows if (row.a, row.b) != (None, None))


def comparison_page(comparison: Comparison) -> str:
    """The page of a comparison."""
    most = max(
        (x for row in comparison.blocks for x in (row.a, row.b) if x is not None), default=1.0
    )
    head = [("block", "name"), ("A over B", "bars"), ("A ms", "n"), ("B ms", "n"), ("B / A", "n")]
    lines: list[list[str]] = []
    for row in comparison.blocks:
        pair = tag(
            "div", bar((row.a or 0.0) / most, "host"),
            bar((row.b or 0.0) / most, "prefill" if row.slower else "vision"),
        )  # fmt: skip
        lines.append([row.name, pair, *_cells(row)])
    plain = [("", "name"), ("A", "n"), ("B", "n"), ("B / A", "n")]
    marked = [
        tag(
            "p",
            tag("b", "Slower by more than a fifth: "),
            ", ".join(comparison.slower),
            class_="note",
        )
    ]
    return page(
        "edgevlm compare",
        tag("h1", f"{comparison.b} compared with {comparison.a}"),
        tag(
            "p",
            f"A is {comparison.a}, B is {comparison.b}; {comparison.note}.",
            class_="soft small",
        ),
        *(marked if comparison.slower else []),
        tag("h2", "Totals"),
        rows(plain, [[_words(row.name), *_cells(row)] for row in comparison.totals]),
        tag("h2", "Time of an answer by stage"),
        rows(plain, [[label(row.name), *_cells(row)] for row in comparison.stages]),
        tag("h2", "Blocks, one run each"),
        rows(head, lines),
    )


def figure(row: ComparisonRow, value: float | None) -> str:
    """A figure in the unit that its name has."""
    if value is None:
        return "-"
    if row.name.endswith("_bytes"):
        return megabytes(value)
    if row.name.endswith("_per_s"):
        return f"{value:,.1f}"
    return milliseconds(value)


def _cells(row: ComparisonRow) -> list[str]:
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    marked: str = tag("span", f"{ratio} slower", class_="bad") if row.slower else ratio
    return [figure(row, row.a), figure(row, row.b), marked]


def _row(name: str, a: float | None, b: float | None) -> ComparisonRow:
    ratio = None if a is None or b is None or a <= 0 else round(b / a, 4)
    timed = not name.endswith(("_bytes", "_per_s", "_joules"))
    return ComparisonRow(name, a, b, ratio, timed and ratio is not None and ratio > SLOWER)


def _words(name: str) -> str:
    return name.removesuffix("_bytes").removesuffix("_version").replace("_", " ")
