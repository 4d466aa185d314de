"""What is changed in a bundle: bits, lengths, links, numbers, texts, tokenizers, layouts."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Change = Callable[[Path], None]
KINDS = ("manifest.json", "tokenizer.json", ".onnx", ".weights", "table.bin")


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
