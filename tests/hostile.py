"""Hostile bundles, each opened by the command line in a process of its own.

    PYTHONPATH=$PWD python tests/hostile.py             all, printed as a table
    PYTHONPATH=$PWD python tests/hostile.py NAME ...    groups whose names contain one of these
    PYTHONPATH=$PWD python tests/hostile.py --write     all, into docs/reliability.md

The bundle is that of the embedded model. Each case changes a copy; where the group says so, hashes
in the manifest are made to fit. What counts: an answer, or one line on stderr that begins with
`edgevlm: ` and exit code 1. A traceback, an end by a signal, more than a minute, or 1 GB more than
the bundle takes when nothing is wrong, is a fault, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "edgevlm" / "photos" / "hand.jpg"
BEGIN, END = "<!-- hostile: begin -->", "<!-- hostile: end -->"
LIMIT_S, GROWTH_BYTES, LONGEST_LINE = 60, 10**9, 1200
Change = Callable[[Path], None]
KINDS = ("manifest.json", "tokenizer.json", ".onnx", ".weights", "table.bin")


@dataclass(frozen=True)
class Outcome:
    """`answered`, `refused`, or the name of a fault, with the line that says more."""

    kind: str
    line: str
    peak_bytes: int


def ask(bundle: Path, cache: Path, limit_bytes: int | None = None) -> Outcome:
    """Ask a bundle one question."""
    code = "from edgevlm.cli import main; main()"
    arguments = ["run", bundle, "--image", PHOTO, "--prompt", "Which digit does the hand show?"]
    command = [sys.executable, "-P", "-c", code, *map(str, arguments), "--threads", "1"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        peak, end = 0, time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < end:
            peak = max(peak, _peak_bytes(process.pid))
            if limit_bytes is not None and peak > limit_bytes:
                break
            time.sleep(0.02)
        if process.poll() is None:
            process.kill()
        out, err = process.communicate()
    return _judged(process.returncode, out, err, peak, limit_bytes)


def _judged(code: int, out: str, err: str, peak: int, limit: int | None) -> Outcome:
    lines = [line for line in err.splitlines() if not line.startswith("[ ")]
    last = lines[-1] if lines else ""
    if limit is not None and peak > limit:
        return Outcome("memory", f"{peak // 10**6} MB", peak)
    if code < 0:
        kind = "hang" if code == -signal.SIGKILL else f"signal {-code}"
        return Outcome(kind, last, peak)
    if "Traceback" in err:
        return Outcome("traceback", last, peak)
    if code == 0 and out:
        return Outcome("answered", out.strip(), peak)
    good = code == 1 and len(lines) == 1 and last.startswith("edgevlm: ") and not out.strip()
    return Outcome("refused" if good and len(last) <= LONGEST_LINE else "untidy", err, peak)


def _peak_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def fit_hashes(bundle: Path) -> None:
    """Let the manifest list the files as they are."""
    path = bundle / "manifest.json"
    try:
        document = json.loads(path.read_bytes())
        for entry in document["files"]:
            content = (bundle / entry["path"]).read_bytes()
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    except (ValueError, OSError, KeyError, TypeError):
        return
    path.write_text(json.dumps(document), "utf-8")


def files_of(bundle: Path) -> dict[str, list[Path]]:
    """Files by kind."""
    every = sorted(path for path in bundle.rglob("*") if path.is_file())
    return {kind: [path for path in every if path.name.endswith(kind)] for kind in KINDS}


def flips(bundle: Path, chance: random.Random) -> Iterator[Change]:
    """One bit of a file of each kind turned."""
    for paths in files_of(bundle).values():
        for path in chance.sample(paths, min(6, len(paths))) * (1 if len(paths) > 3 else 6):
            name, bit = path.relative_to(bundle), chance.randrange(8 * path.stat().st_size)

            def change(folder: Path, name: Path = name, bit: int = bit) -> None:
                content = bytearray((folder / name).read_bytes())
                content[bit // 8] ^= 1 << bit % 8
                (folder / name).write_bytes(content)

            yield change


def cuts(bundle: Path, chance: random.Random) -> Iterator[Change]:
    """A file of each kind ends early."""
    for paths in files_of(bundle).values():
        for share in (0.0, 0.5, 0.999):
            name = chance.choice(paths).relative_to(bundle)

            def change(folder: Path, name: Path = name, share: float = share) -> None:
                content = (folder / name).read_bytes()
                (folder / name).write_bytes(content[: int(share * len(content))])

            yield change


def links(bundle: Path, chance: random.Random) -> Iterator[Change]:
    """Files and folders become links out of the bundle, or go."""
    for paths in files_of(bundle).values():
        name = chance.choice(paths).relative_to(bundle)

        def outward(folder: Path, name: Path = name) -> None:
            (folder / name).unlink()
            (folder / name).symlink_to("/etc/passwd")

        def gone(folder: Path, name: Path = name) -> None:
            (folder / name).unlink()

        def pipe(folder: Path, name: Path = name) -> None:
            (folder / name).unlink()
            os.mkfifo(folder / name)

        yield from (outward, gone, pipe)

    def blocks(folder: Path) -> None:
        (folder / "blocks").rename(folder.parent / f"{folder.name}.moved")
        (folder / "blocks").symlink_to(folder.parent / f"{folder.name}.moved")

    yield blocks


def numbers(bundle: Path, chance: random.Random) -> Iterator[Change]:
    """A number of the manifest becomes another, a text, or nothing."""
    document = json.loads((bundle / "manifest.json").read_bytes())
    places = list(_places(document, (), int | float))
    odd: tuple[Any, ...] = (-1, 0, 2**31, 2**63, 10**400, 1e308, "9", None, [], True)
    for place in chance.sample(places, min(60, len(places))):
        value = chance.choice(odd)

        def change(folder: Path, place: tuple[Any, ...] = place, value: Any = value) -> None:
            _put(folder, place, value)

        yield change


def texts(bundle: Path, chance: random.Random) -> Iterator[Change]:
    """A text of the manifest becomes a path, an escape sequence, or a million letters."""
    document = json.loads((bundle / "manifest.json").read_bytes())
    places = list(_places(document, (), str))
    odd = ("../../etc/passwd", "/etc/passwd", "\x1b[2J\x1b]0;owned\x07", "x" * 10**6, "", "\0", "é")
    for place in chance.sample(places, min(40, len(places))):
        value = chance.choice(odd)

        def change(folder: Path, place: tuple[Any, ...] = place, value: str = value) -> None:
            _put(folder, place, value)

        yield change


def tokenizers(bundle: Path, chance: random.Random) -> Iterator[Change]:
    """Steps and sizes of tokenizer.json that abort a process or fill its memory."""
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60}
    star = {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y" * 60}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    padding = {
        "strategy": {"Fixed": 2**33}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
    }  # fmt: skip
    cutting = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    damaged = {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}
    changes: list[dict[str, Any]] = [
        {"padding": padding},
        {"truncation": cutting},
        {"normalizer": {"type": "Sequence", "normalizers": [replace] * 8}},
        {"normalizer": {"type": "Sequence", "normalizers": [star] * 4}},
        {"normalizer": damaged},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 10**7}},
        {"normalizer": {"type": "Unknown"}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"pre_tokenizer": split | {"pattern": {"Regex": "(a|a)*$"}}},
        {"pre_tokenizer": split | {"pattern": {"Regex": "("}}},
        {"pre_tokenizer": split | {"pattern": {"Regex": ""}}},
        {"decoder": {"type": "Strip", "content": "a", "start": 2**40, "stop": 2**40}},
        {"decoder": {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True}},
        {"added_tokens": [{"id": 5, "content": ""}]},
        {"added_tokens": None},
        {"model": None},
        {"model": {"type": "BPE", "vocab": {str(n): n for n in range(2_000_000)}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}},
        {"model": {"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}},
        {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": []}},
    ]
    for values in changes:

        def change(folder: Path, values: dict[str, Any] = values) -> None:
            path = folder / "tokenizer.json"
            document = json.loads(path.read_bytes())
            path.write_text(json.dumps(document | values), "utf-8")

        yield change


def layouts(bundle: Path, chance: random.Random) -> Iterator[Change]:
    """Items of the layout taken out, doubled, exchanged, or made long."""
    document = json.loads((bundle / "manifest.json").read_bytes())
    for name in ("prompt", "image", "text", "turn"):
        items = document["host"]["layout"][name]
        long = [dict(items[0], kind="ids", ids=[1] * 4 * 10**6)]
        for value in ([], items * 2, items[::-1], items[1:], items[:-1], long, items * 10**5):
            if len(json.dumps(value)) < 40 * 10**6:

                def change(folder: Path, name: str = name, value: Any = value) -> None:
                    _put(folder, ("host", "layout", name), value)

                yield change


def _places(value: Any, place: tuple[Any, ...], kind: Any) -> Iterator[tuple[Any, ...]]:
    """Paths to values of a kind."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            if key != "files":
                yield from _places(inner, (*place, key), kind)
    elif isinstance(value, kind) and not isinstance(value, bool):
        yield place


def _put(folder: Path, place: tuple[Any, ...], value: Any) -> None:
    path = folder / "manifest.json"
    document = copy.deepcopy(json.loads(path.read_bytes()))
    at = document
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path.write_text(json.dumps(document), "utf-8")


# Group: what makes its changes, and whether hashes are made to fit.
GROUPS: dict[str, tuple[Callable[[Path, random.Random], Iterator[Change]], bool]] = {
    "a bit turned": (flips, False),
    "a bit turned, hashes fit": (flips, True),
    "a file cut": (cuts, False),
    "a file cut, hashes fit": (cuts, True),
    "links, pipes, missing files": (links, False),
    "odd numbers in the manifest": (numbers, False),
    "odd texts in the manifest": (texts, False),
    "tokenizers, hashes fit": (tokenizers, True),
    "layouts": (layouts, False),
}


def killed(bundle: Path, folder: Path, chance: random.Random) -> Iterator[Outcome]:
    """A first answer stopped by kill -9 at a random time; the next one is asked."""
    expected = ask(bundle, folder / "calm").line
    for number in range(10):
        cache = folder / f"kill{number}"
        code = "from edgevlm.cli import main; main()"
        command = [sys.executable, "-P", "-c", code, "run", str(bundle), "--image", str(PHOTO)]
        environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [*command, "--prompt", "?"], stderr=subprocess.DEVNULL, env=environment,
            stdout=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            time.sleep(chance.uniform(0.2, 2.5))
            process.kill()
        outcome = ask(bundle, cache)
        right = outcome.kind == "answered" and outcome.line == expected
        yield outcome if right else Outcome("another answer", outcome.line, 0)


def row(name: str, outcomes: list[Outcome]) -> str:
    """A row of the table."""
    count = {kind: sum(o.kind == kind for o in outcomes) for kind in ("answered", "refused")}
    other = len(outcomes) - sum(count.values())
    most = max((o.peak_bytes for o in outcomes), default=0) // 10**6
    counts = len(outcomes), count["answered"], count["refused"], other, most
    return "| " + " | ".join(map(str, (name, *counts))) + " |"


def main() -> None:
    """Run, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="groups whose names contain one of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    arguments = parser.parse_args()
    rows, faults = [], 0
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        bundle = _exported(folder)
        calm = ask(bundle, folder / "cache")
        assert calm.kind == "answered", calm
        limit = calm.peak_bytes + GROWTH_BYTES
        groups: dict[str, Iterator[Outcome]] = {
            name: _outcomes(bundle, folder, make, fits, limit, random.Random(arguments.seed))
            for name, (make, fits) in GROUPS.items()
        }
        groups["killed at a random time"] = killed(bundle, folder, random.Random(arguments.seed))
        for name, made in groups.items():
            if arguments.names and not any(part in name for part in arguments.names):
                continue
            outcomes = list(made)
            for outcome in outcomes:
                if outcome.kind not in ("answered", "refused"):
                    faults += 1
                    print(f"{name}: {outcome.kind}: {outcome.line[:400]}", file=sys.stderr)
            rows.append(row(name, outcomes))
            print(rows[-1], file=sys.stderr, flush=True)
    head = "| change | tried | answered | refused in one line | else | largest peak, MB |\n"
    table = head + "|---|---|---|---|---|---|\n" + "\n".join(rows)
    if arguments.write:
        path = ROOT / "docs" / "reliability.md"
        before, _, rest = path.read_text("utf-8").partition(BEGIN)
        path.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", "utf-8")
    else:
        print(table)
    sys.exit(bool(faults))


def _exported(folder: Path) -> Path:
    code = "from edgevlm.cli import main; main()"
    command = [sys.executable, "-P", "-c", code, "export", "embedded", "-o", str(folder / "b")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    return folder / "b"


def _outcomes(
    bundle: Path,
    folder: Path,
    make: Callable[[Path, random.Random], Iterator[Change]],
    fits: bool,
    limit: int,
    chance: random.Random,
) -> Iterator[Outcome]:
    for number, change in enumerate(make(bundle, chance)):
        copied = Path(shutil.copytree(bundle, folder / f"{make.__name__}{fits}{number}"))
        change(copied)
        if fits:
            fit_hashes(copied)
        yield ask(copied, folder / "cache", limit)
        shutil.rmtree(copied)
        moved = copied.parent / f"{copied.name}.moved"
        shutil.rmtree(moved, ignore_errors=True)


if __name__ == "__main__":
    main()
