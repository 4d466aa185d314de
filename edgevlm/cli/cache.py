"""`edgevlm cache`: what the cache folder holds, and a way to empty it."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from edgevlm.bundle.cache import cache_folder
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, printable, say, table
from edgevlm.runtimes.built import Entry, entries, limit_bytes, remove
from edgevlm.units import megabytes


def main(
    clear: Annotated[
        bool,
        typer.Option("--clear", help="Remove all entries, but those that a process is using."),
    ] = False,
    json: o.Json = False,
) -> None:
    """List what the cache holds, last used first, or empty it.

    These are packed and compiled blocks, and bundles that `run` and `evaluate` exported; each is
    made again when it is needed. Set EDGEVLM_CACHE_LIMIT, such as 20GB, to change the size at which
    the oldest are removed.
    """
    limit, listed = limit_bytes(), entries()
    removed = [entry for entry in listed if remove(entry)] if clear else []
    kept = [entry for entry in listed if entry not in removed]
    answer(_document(kept, removed, limit), _text(kept, limit), json)
    if clear:
        in_use = "; the others are in use" if kept else ""
        say(f"removed {len(removed)} entries, {megabytes(_bytes(removed))}{in_use}")


def _document(kept: list[Entry], removed: list[Entry], limit: int) -> dict[str, Any]:
    return {
        "folder": str(cache_folder()),
        "bytes": _bytes(kept),
        "limit_bytes": limit,
        "removed_bytes": _bytes(removed),
        "entries": [
            {"name": _name(entry), "bytes": entry.bytes, "used": round(entry.used)}
            for entry in kept
        ],
    }


def _bytes(listed: list[Entry]) -> int:
    return sum(entry.bytes for entry in listed)


def _text(kept: list[Entry], limit: int) -> str:
    rows = [
        [printable(_name(entry)), megabytes(entry.bytes), time.strftime("%F", _day(entry))]
        for entry in kept
    ]
    total = f"{megabytes(_bytes(kept))} of at most {megabytes(limit)}"
    return "\n".join([table(["entry", "size", "last use"], rows), f"{cache_folder()}: {total}"])


def _name(entry: Entry) -> str:
    return entry.path.relative_to(cache_folder()).as_posix()


def _day(entry: Entry) -> time.struct_time:
    return time.localtime(entry.used)
