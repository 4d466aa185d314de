"""What a tokenizer.json may contain: the library that reads it trusts its file.

A fixed padding of 2^33 or a damaged map of characters aborts the process, a chain of replacements
fills its memory. So only steps that published tokenizers consist of are read, their sizes and the
growth of a text are bounded, and padding and truncation, which a prompt must never meet, are taken
off.

Source: tokenizers 0.22, the serialized forms of its components.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgevlm.bundle.documents import shown
from edgevlm.errors import BundleError

MOST_BYTES = 64 * 10**6
MOST_WORDS = 2**20
MOST_ADDED = 2**16
MOST_STEPS = 32
MOST_GROWTH = 64  # how many times longer its steps may make a text
MOST_LETTERS = 64  # of a prefix, of what a replacement puts in, of letters to strip
STEPS = {
    "normalizer": {
        "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt",
        "Precompiled", "Prepend", "Replace", "Sequence", "Strip", "StripAccents",
    },
    "pre_tokenizer": {
        "BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Sequence", "Split",
        "UnicodeScripts", "Whitespace", "WhitespaceSplit",
    },
    "post_processor": {
        "BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing",
    },
    "decoder": {
        "BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Sequence",
        "Strip", "WordPiece",
    },
    "model": {"BPE", "Unigram", "WordLevel", "WordPiece"},
}  # fmt: skip
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")


def read_tokenizer(path: Path) -> str:
    """The text of a tokenizer.json that is safe to read, without padding and truncation.

    Raises:
        BundleError: If the file is too large, is no JSON object, or has a step, a size or a growth
            that no tokenizer needs.
    """
    if path.stat().st_size > MOST_BYTES:
        raise _refusal(f"it has more than {MOST_BYTES} bytes")
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as cause:
        raise _refusal(f"it is no JSON: {cause}") from cause
    if not isinstance(document, dict):
        raise _refusal("it is no JSON object")
    try:
        _check(document)
    except (TypeError, AttributeError, KeyError, ValueError, RecursionError) as cause:
        raise _refusal(f"a field has another type than expected: {cause}") from cause
    return json.dumps(document | {"padding": None, "truncation": None})


def _check(document: Mapping[str, Any]) -> None:
    for part, known in STEPS.items():
        steps = list(_steps(document.get(part)))
        if len(steps) > MOST_STEPS:
            raise _refusal(f"its {part} has {len(steps)} steps, expected at most {MOST_STEPS}")
        growth = 1.0
        for step in steps:
            # Files of old releases name no model; the library then tries all of them.
            kind = step.get("type", "BPE" if part == "model" else None)
            if kind not in known:
                raise _refusal(f"its {part} has the step {shown(kind)}, known: {_names(known)}")
            growth *= _growth(step)
            _check_step(step, part)
        if growth > MOST_GROWTH:
            raise _refusal(f"its {part} makes a text {growth:.0f} times as long")
    model = document["model"]
    for name, most in (("vocab", MOST_WORDS), ("merges", 2 * MOST_WORDS)):
        if len(model.get(name) or ()) > most:
            raise _refusal(f"model.{name} has more than {most} entries")
    added = document.get("added_tokens") or ()
    if len(added) > MOST_ADDED:
        raise _refusal(f"added_tokens has more than {MOST_ADDED} entries")
    if not all(token["content"] for token in added):
        raise _refusal("added_tokens has an empty token")


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """A component, and the components that it is a sequence of."""
    if part is None:
        return
    yield part
    for name in _LISTS:
        for inner in part.get(name) or ():
            yield from _steps(inner)


def _growth(step: Mapping[str, Any]) -> float:
    """How many times longer a step may make a text."""
    if step.get("type") != "Replace":
        return 1.0
    pattern, content = step["pattern"], step["content"]
    if not isinstance(content, str) or len(content) > MOST_LETTERS:
        raise _refusal(f"a replacement puts in {shown(content)}")
    replaced = pattern.get("String")
    if replaced is None:  # an expression may match between two letters
        return len(content) + 1.0
    if not replaced:
        raise _refusal("a replacement has an empty pattern")
    return max(1.0, len(content) / len(replaced))


def _check_step(step: Mapping[str, Any], part: str) -> None:
    """Bound the numbers and texts of a step."""
    for name in ("prepend", "prefix", "suffix", "replacement", "content"):
        if part != "model" and isinstance(text := step.get(name), str) and len(text) > MOST_LETTERS:
            raise _refusal(f"its {part} has {name} {shown(text)}")
    for name in ("start", "stop"):
        if not 0 <= step.get(name, 0) <= MOST_LETTERS:
            raise _refusal(f"its {part} strips {shown(step[name])} letters")
    if step.get("type") == "TemplateProcessing":
        pieces = [*step["single"], *step["pair"], *step["special_tokens"].values()]
        count = sum(len(piece.get("ids", ())) for piece in pieces) + len(pieces)
        if count > 4 * MOST_STEPS:
            raise _refusal(f"its {part} adds {count} tokens")
    if step.get("type") == "Precompiled":
        _check_map(step["precompiled_charsmap"])


def _check_map(text: str) -> None:
    """A map of characters: the size of a table of 4-byte units, the table, texts."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as cause:
        raise _refusal("its map of characters is damaged") from cause
    size = int.from_bytes(data[:4], "little")
    if len(data) < 8 or size % 4 or not 4 <= size <= len(data) - 4:
        raise _refusal("its map of characters is damaged")


def _names(known: set[str]) -> str:
    return ", ".join(sorted(known))


def _refusal(reason: str) -> BundleError:
    return BundleError(f"'tokenizer.json' is not valid: {reason}")
