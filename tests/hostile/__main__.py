"""Hostile bundles and surroundings, each met by the command line in a process of its own.

    python tests/hostile             all, printed as a table
    python tests/hostile NAME ...    groups whose names contain one of these
    python tests/hostile --write     all, into docs/reliability.md

The bundle is that of the embedded model. Each case changes a copy; where the group says so, hashes
in the manifest are made to fit. Other groups leave it as it is and change what is around it. What
counts: an answer, or one line on stderr that begins with `edgevlm: ` and exit code 1. A traceback,
an end by a signal, more than a minute, or 1 GB more than the bundle takes when nothing is wrong, is
a fault, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from asking import ROOT, Outcome, ask, start
from changes import GROUPS, Change, fit_hashes
from surroundings import SURROUNDINGS

BEGIN, END = "<!-- hostile: begin -->", "<!-- hostile: end -->"
GROWTH_BYTES = 10**9


def main() -> None:
    """Run, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="groups whose names contain one of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    arguments = parser.parse_args()
    rows, faults = [], 0
    with tempfile.TemporaryDirectory() as text:
        for name, made in groups(Path(text), arguments.seed):
            if arguments.names and not any(part in name for part in arguments.names):
                continue
            outcomes = list(made)
            for outcome in outcomes:
                if not outcome.good:
                    faults += 1
                    print(f"{name}: {outcome.kind}: {outcome.line[:400]}", file=sys.stderr)
            rows.append(row(name, outcomes))
            print(rows[-1], file=sys.stderr, flush=True)
    head = "| what is odd | tried | answered | refused in one line | else | largest peak, MB |\n"
    table = head + "|---|---|---|---|---|---|\n" + "\n".join(rows)
    if arguments.write:
        path = ROOT / "docs" / "reliability.md"
        before, _, rest = path.read_text("utf-8").partition(BEGIN)
        path.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", "utf-8")
    else:
        print(table)
    sys.exit(bool(faults))


def groups(folder: Path, seed: int) -> Iterator[tuple[str, Iterator[Outcome]]]:
    """Each group's name and its outcomes, which are made when they are asked for."""
    bundle = folder / "b"
    with start(["export", "embedded", "-o", str(bundle)], folder / "cache") as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    calm = ask(bundle, folder / "cache")
    assert calm.kind == "answered", calm
    limit = calm.peak_bytes + GROWTH_BYTES
    for name, (make, fits) in GROUPS.items():
        yield name, changed(bundle, folder, make, fits, limit, random.Random(seed))
    for name, around in SURROUNDINGS.items():
        own = folder / name.replace(" ", "-")
        own.mkdir()
        yield name, around(bundle, own, random.Random(seed))
        shutil.rmtree(own)


def changed(
    bundle: Path,
    folder: Path,
    make: Callable[[Path, random.Random], Iterator[Change]],
    fits: bool,
    limit: int,
    chance: random.Random,
) -> Iterator[Outcome]:
    """Outcomes of a group that changes copies of the bundle."""
    for number, change in enumerate(make(bundle, chance)):
        copied = Path(shutil.copytree(bundle, folder / f"{make.__name__}{fits}{number}"))
        change(copied)
        if fits:
            fit_hashes(copied)
        yield ask(copied, folder / "cache", limit)
        shutil.rmtree(copied)
        moved = copied.parent / f"{copied.name}.moved"
        shutil.rmtree(moved, ignore_errors=True)


def row(name: str, outcomes: list[Outcome]) -> str:
    """A row of the table."""
    count = {kind: sum(o.kind == kind for o in outcomes) for kind in ("answered", "refused")}
    other = len(outcomes) - sum(count.values())
    most = max((o.peak_bytes for o in outcomes), default=0) // 10**6
    counts = len(outcomes), count["answered"], count["refused"], other, most
    return "| " + " | ".join(map(str, (name, *counts))) + " |"


if __name__ == "__main__":
    main()
