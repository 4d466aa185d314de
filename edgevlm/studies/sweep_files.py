"""The two files of a sweep: every number as CSV, and a chart of accuracy against tokens and time.

Left panels: accuracy against visual tokens, on a logarithmic axis, with 95 % intervals. Right ones:
accuracy against the median time to first token. Methods inside the language model have panels of
their own, below; their tokens are those that the last layer sees, and 0 stands at the edge. A line
is a method, and ends in the point of all tokens. If there are many methods, only the baselines have
intervals, and dashed lines. Nothing else uses matplotlib.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from edgevlm.bundle.writing import check_folder, write_bytes
from edgevlm.errors import InputError
from edgevlm.libraries import require
from edgevlm.studies.sweep import BASELINES, UNREDUCED, SweepRow, table_csv

SITE = "@decoder"  # ends the name of a method inside the language model

SUFFIXES = (".csv", ".png")
FEW = 8  # methods that fit a legend inside
EDGE = 4  # where an axis has the methods that leave no token
COLOURS, MARKERS = 10, "ov^D"  # of matplotlib's cycle; the marker changes with each round


def require_matplotlib() -> None:
    """Say which extra is missing, before hours of work.

    Raises:
        RuntimeLoadError: If matplotlib is not installed.
    """
    require("the picture of a sweep", "matplotlib", "matplotlib", "evaluate")


def check_prefix(prefix: str, force: bool) -> None:
    """Refuse files that cannot be written, or exist.

    Raises:
        InputError: If there is no such folder, or a file exists and `force` is not given.
    """
    for path in _paths(prefix):
        check_folder(path)
        if path.is_dir():
            raise InputError(f"'{path}' is a folder; choose another --output")
        if path.exists() and not force:
            raise InputError(f"'{path}' exists; choose another --output or give --force")


def write(rows: list[SweepRow], title: str, prefix: str, force: bool) -> tuple[Path, ...]:
    """Write PREFIX.csv and PREFIX.png, each completely or not at all.

    Raises:
        InputError: As `check_prefix`.
        RuntimeLoadError: If matplotlib is not installed.
    """
    require_matplotlib()
    paths = _paths(prefix)
    contents = (table_csv(rows).encode(), draw(rows, title))
    check_prefix(prefix, force)
    for path, data in zip(paths, contents, strict=True):
        write_bytes(path, data)
    return paths


def draw(rows: list[SweepRow], title: str) -> bytes:
    """The chart, as PNG. The same rows give the same bytes with the same matplotlib."""
    # Imported here, and without pyplot: that would open a display and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row.method for row in rows if row.evaluation))
    crowded = len(methods) > FEW
    inside = [method for method in methods if method.endswith(SITE)]
    before = [method for method in methods if method not in inside]
    common = [method for method in before if _is_baseline(method)]
    groups = [before, [*common, *inside]] if inside and before != common else [methods]
    width, height = (13, 6) if crowded else (11, 4.5)
    figure = Figure(figsize=(width, height * len(groups)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(groups), 2, sharey="row", squeeze=False)
    for (left, right), group in zip(panels, groups, strict=True):
        _draw_group(left, right, rows, group, crowded)
    FigureCanvasAgg(figure)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130, metadata={"Software": None})
    return image.getvalue()


def _draw_group(
    left: Any, right: Any, rows: list[SweepRow], methods: list[str], crowded: bool
) -> None:
    """Methods side by side, with their legend."""
    for index, method in enumerate(methods):
        _draw_method(left, right, rows, method, _style(index, method, crowded), crowded)
    _token_axis(left, [row for row in rows if row.method in methods])
    left.set_ylabel("right answers, %, with 95 % interval")
    right.set_xlabel("ms to first token, median")
    if crowded:
        named = left.get_legend_handles_labels()
        right.legend(*named, loc="upper left", bbox_to_anchor=(1.02, 1), fontsize="small")
    else:
        left.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)


def _draw_method(
    left: Any, right: Any, rows: list[SweepRow], method: str, style: dict[str, Any], crowded: bool
) -> None:
    """One method: accuracy over tokens on the left, over time on the right."""
    methods = (method,) if method == UNREDUCED else (method, UNREDUCED)
    ordered = sorted(
        (row for row in rows if row.method in methods), key=lambda r: r.method != method
    )
    points = [(row.tokens, row.evaluation) for row in ordered if row.evaluation is not None]
    accuracy = [100 * evaluation.accuracy for _, evaluation in points]
    # A rounding of the last bit may put an end of the interval past the middle.
    below = [max(0.0, 100 * (e.accuracy - e.low)) for _, e in points]
    above = [max(0.0, 100 * (e.high - e.accuracy)) for _, e in points]
    interval = (below, above) if _is_baseline(method) or not crowded else None
    tokens = [max(count, EDGE) for count, _ in points]
    left.errorbar(tokens, accuracy, interval, capsize=2, label=method, **style)
    timed = [(e.ttft_ms.median, 100 * e.accuracy) for _, e in points if e.ttft_ms]
    right.plot([ms for ms, _ in timed], [percent for _, percent in timed], **style)


def _style(index: int, method: str, crowded: bool) -> dict[str, Any]:
    """Colour, marker and line of a method."""
    baseline = _is_baseline(method)
    style: dict[str, Any] = {
        "color": "black" if baseline and crowded else f"C{index % COLOURS}",
        "marker": MARKERS[index // COLOURS % len(MARKERS)],
        "linestyle": "--" if baseline and crowded else "-", "markersize": 4, "linewidth": 1,
        "zorder": 3 if baseline else 2,
    }  # fmt: skip
    if method == UNREDUCED:
        style |= {"linestyle": "", "marker": "s"}
    elif crowded and method in BASELINES:  # both are black
        style["marker"] = "xP"[BASELINES.index(method)]
    return style


def _is_baseline(method: str) -> bool:
    return method in (UNREDUCED, *BASELINES)


def _token_axis(axes: Any, rows: list[SweepRow]) -> None:
    """A logarithmic axis with a tick at each budget; 0 has no logarithm and stands at `EDGE`."""
    from matplotlib.ticker import FixedFormatter, NullFormatter

    budgets = sorted({row.tokens for row in rows if row.evaluation})
    axes.set_xscale("log", base=2)
    axes.set_xticks([max(count, EDGE) for count in budgets])
    axes.xaxis.set_major_formatter(FixedFormatter([str(count) for count in budgets]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("visual tokens")


def _paths(prefix: str) -> tuple[Path, ...]:
    return tuple(Path(prefix + suffix) for suffix in SUFFIXES)
