"""The two files of a sweep: every number as CSV, and a picture of accuracy against cost.

Left panel: accuracy against visual tokens, on a logarithmic axis, with 95 % intervals. Right panel:
accuracy against the median time to first token. A line is a method, and ends in the point of all
tokens. Of many methods only the baselines have intervals, and dashed lines. The only user of
matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm.bundle.writing import check_folder
from edgevlm.errors import InputError
from edgevlm.libraries import require
from edgevlm.studies.sweep import BASELINES, REFERENCE, Row, table_csv

SUFFIXES = (".csv", ".png")
FEW = 8  # methods that fit a legend inside
COLOURS, MARKERS = 10, "ov^D"  # of matplotlib's cycle; the marker changes with each round


def require_matplotlib() -> None:
    """Say which extra is missing, before hours of work.

    Raises:
        RuntimeLoadError: If matplotlib is not installed.
    """
    require("the picture of a sweep", "matplotlib", "matplotlib", "evaluate")


def check_prefix(prefix: str, force: bool) -> None:
    """Refuse a place that cannot be written, or is taken.

    Raises:
        InputError: If there is no such folder, or a file is there and `force` is not given.
    """
    for path in _paths(prefix):
        check_folder(path)
        if path.is_dir():
            raise InputError(f"'{path}' is a folder; choose another --output")
        if path.exists() and not force:
            raise InputError(f"'{path}' exists; choose another --output or give --force")


def write(rows: list[Row], title: str, prefix: str, force: bool) -> tuple[Path, ...]:
    """Write PREFIX.csv and PREFIX.png, each whole or not at all.

    Raises:
        InputError: As `check_prefix`.
        RuntimeLoadError: If matplotlib is not installed.
    """
    require_matplotlib()
    paths = _paths(prefix)
    makers: tuple[Callable[[Path], None], ...] = (
        lambda path: _write_text(path, table_csv(rows)),
        lambda path: draw(rows, title, path),
    )
    temporary = [path.with_name(f".{path.name}.partial") for path in paths]
    try:
        for path, make in zip(temporary, makers, strict=True):
            make(path)
        check_prefix(prefix, force)
        for path, final in zip(temporary, paths, strict=True):
            path.replace(final)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return paths


def draw(rows: list[Row], title: str, path: Path) -> None:
    """The picture, as PNG. The same rows give the same bytes with the same matplotlib."""
    # Imported here, and without pyplot: that would look for a screen and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    methods = list(dict.fromkeys(row.method for row in rows if row.evaluation))
    crowded = len(methods) > FEW
    figure = Figure(figsize=(13 if crowded else 11, 6 if crowded else 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title)
    whole = [row for row in rows if row.method == REFERENCE]
    for index, method in enumerate(methods):
        line = [row for row in rows if row.method == method]
        points = [
            (row.tokens, found)
            for row in (line if method == REFERENCE else line + whole)
            if (found := row.evaluation) is not None
        ]
        share = [100 * found.accuracy for _, found in points]
        # An end may be past the middle by a rounding of the last bit.
        below = [max(0.0, 100 * (found.accuracy - found.low)) for _, found in points]
        above = [max(0.0, 100 * (found.high - found.accuracy)) for _, found in points]
        baseline = method in (REFERENCE, *BASELINES)
        look: dict[str, Any] = {
            "color": "black" if baseline and crowded else f"C{index % COLOURS}",
            "marker": MARKERS[index // COLOURS % len(MARKERS)],
            "linestyle": "--" if baseline and crowded else "-", "markersize": 4, "linewidth": 1,
            "zorder": 3 if baseline else 2,
        }  # fmt: skip
        if method == REFERENCE:
            look |= {"linestyle": "", "marker": "s"}
        elif crowded and method in BASELINES:  # both are black
            look["marker"] = "xP"[BASELINES.index(method)]
        interval = (below, above) if baseline or not crowded else None
        left.errorbar(
            [tokens for tokens, _ in points], share, interval, capsize=2, label=method, **look
        )
        timed = [(f.ttft_ms.median, 100 * f.accuracy) for _, f in points if f.ttft_ms]
        right.plot([ms for ms, _ in timed], [percent for _, percent in timed], **look)
    left.set_xscale("log", base=2)
    left.set_xticks(sorted({row.tokens for row in rows if row.evaluation}))
    left.xaxis.set_major_formatter(ScalarFormatter())
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("visual tokens")
    left.set_ylabel("right answers, %, with 95 % interval")
    right.set_xlabel("ms to first token, median")
    if crowded:
        figure.legend(loc="outside right upper", fontsize="small")
    else:
        left.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=130, metadata={"Software": None})


def _paths(prefix: str) -> tuple[Path, ...]:
    return tuple(Path(prefix + suffix) for suffix in SUFFIXES)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, "utf-8", newline="")
