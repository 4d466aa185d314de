"""Read a manifest as untrusted input: all that other code relies on is checked here, once.

    1. The file: its size, JSON without repeated keys and NaN, the version, exact types.
    2. The files that it lists: inside the bundle, no symbolic links, of the stated size.
    3. The constants of the host, by the bundle's kind.
    4. The blocks: spans fill each stage, and every function has the tensors, caches and chaining of
       its kind's `signature`, so that a loop meets no unknown name and no other shape.

Every error is one line with file and field. `Bundle.file` checks contents, at their first use.
Needs neither torch nor any engine.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from edgevlm.bundle.checks import MOST_SIZE, expect
from edgevlm.bundle.documents import (
    DocumentError,
    check_printable,
    keys_once,
    load_json,
    read,
    shown,
)
from edgevlm.bundle.functions import DTYPES, Block, Function, Signature, Tensor
from edgevlm.bundle.plan import FORMAT_VERSION, MANIFEST, Plan
from edgevlm.errors import BundleError
from edgevlm.registry import KINDS

MANIFEST_LIMIT_BYTES = 32 * 10**6
# Most dimensions of a traced tensor.
DIMENSIONS = 6
MOST_BLOCKS = 2**14
MOST_FLOPS = 10**24  # of a function; what is divided into times must be a float
# Most requirements of a bundle, and letters of each name and version.
MOST_REQUIRED, LONGEST_REQUIRED = 16, 60


def read_manifest(folder: Path) -> Plan[Any]:
    """The checked manifest of the bundle in `folder`.

    Raises:
        BundleError: If any check fails; one line with file and field.
    """
    plan = _parse(folder / MANIFEST)
    _check_files(folder, plan)
    kind = KINDS.load(plan.kind)
    _check_requires(plan)
    _check_sites(plan)
    kind.check(plan)
    _check_tensors(plan)
    _check_blocks(plan, kind)
    return plan


def _parse(path: Path) -> Plan[Any]:
    if path.is_symlink():
        raise BundleError(f"{MANIFEST} is a symbolic link; copy the file itself into the bundle")
    if not path.is_file():
        raise BundleError(f"'{path.parent}' is not a bundle: it has no {MANIFEST}; export one")
    try:
        document = load_json(
            path, MANIFEST_LIMIT_BYTES, object_pairs_hook=keys_once, parse_constant=_constant
        )
    except DocumentError as cause:
        raise BundleError(str(cause)) from cause
    except (ValueError, RecursionError, OSError) as cause:
        raise BundleError(f"{MANIFEST} is not valid JSON: {cause}") from cause
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST}: format_version is {shown(version)}, this edgevlm reads {FORMAT_VERSION};"
            " export the model again"
        )
    kind = document.get("kind")
    if kind not in KINDS.names():
        raise BundleError(f"{MANIFEST}: kind is {shown(kind)}, known: {', '.join(KINDS.names())}")
    try:
        plan = read(Plan, document, MANIFEST)
        check_printable(document, MANIFEST)
        return plan
    except (DocumentError, RecursionError) as cause:
        raise BundleError(str(cause)) from cause


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _check_files(folder: Path, plan: Plan[Any]) -> None:
    listed: set[str] = set()
    for index, entry in enumerate(plan.files):
        field = f"{MANIFEST}: files[{index}].path {shown(entry.path)}"
        parts = PurePosixPath(entry.path).parts
        odd = entry.path.startswith("/") or any(c in entry.path for c in "\\:\0")
        if odd or not parts or ".." in parts or entry.path != "/".join(parts):
            raise BundleError(f"{field} leaves the bundle")
        if entry.path in listed:
            raise BundleError(f"{field} is listed twice")
        listed.add(entry.path)
        try:
            _check_file(folder, parts, entry.bytes, field)
        except OSError as cause:  # such as a name too long for the file system
            raise BundleError(f"{field} cannot be read: {cause.strerror}") from cause
    for file in (f.file for b in plan.blocks for f in b.functions):
        if file not in listed and not any(name.startswith(f"{file}/") for name in listed):
            raise BundleError(f"{MANIFEST}: {shown(file)} is used but not listed in files")


def _check_file(folder: Path, parts: Sequence[str], expected: int, field: str) -> None:
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise BundleError(f"{field} is behind a symbolic link")
    name = shown("/".join(parts))
    if not path.is_file():
        raise BundleError(f"{name} is missing from the bundle")
    size = path.stat().st_size
    if size != expected:
        raise BundleError(f"{name} has {size} bytes, the manifest has {shown(expected)}")


def _check_requires(plan: Plan[Any]) -> None:
    """Check that requirements are a few names with versions, each once and in one line."""
    pairs = plan.requires.versions
    texts = [text for pair in pairs for text in pair]
    good = all(0 < len(text) <= LONGEST_REQUIRED and text.isprintable() for text in texts)
    good = good and len({name for name, _ in pairs}) == len(pairs) <= MOST_REQUIRED
    expect(good, "requires.versions must be a few different names, each with a short version")


def _check_sites(plan: Plan[Any]) -> None:
    """Check that each site is named once."""
    names = [site.site for site in plan.sites]
    expect(len({*names}) == len(names), f"sites has {len(names)} entries, expected each site once")


def _check_tensors(plan: Plan[Any]) -> None:
    for block in plan.blocks:
        size = block.weights_bytes
        expect(0 <= size <= 4 * MOST_SIZE, f"{block.name}.weights_bytes is {shown(size)}")
        for function in block.functions:
            flops = function.flops
            expect(
                0 <= flops <= MOST_FLOPS,
                f"{block.name}.{function.name}.flops is {shown(flops)}, expected 0 to 10^24",
            )
            for tensor in (*function.inputs, *function.outputs):
                where = f"{block.name}.{function.name}.{tensor.name}"
                shape = tensor.shape
                good = len(shape) <= DIMENSIONS and all(1 <= d <= MOST_SIZE for d in shape)
                good = good and math.prod(shape) <= MOST_SIZE
                expect(good, f"{where} has the shape {shown(str(list(shape)))}")
                known = tensor.dtype in DTYPES
                expect(known, f"{where} has the dtype {shown(tensor.dtype)}")


def _check_blocks(plan: Plan[Any], kind: ModuleType) -> None:
    spans, known = kind.spans(plan.host), ", ".join(stage.name for stage in kind.STAGES)
    expect(
        len(plan.blocks) <= MOST_BLOCKS,
        f"there are {len(plan.blocks)} blocks, expected at most {MOST_BLOCKS}",
    )
    for block in plan.blocks:
        where = f"block {shown(block.name)}.stage"
        expect(block.stage in spans, f"{where} is {shown(block.stage)}, known: {known}")
    for stage, end in spans.items():
        blocks = plan.stage(stage)
        expect(bool(blocks), f"the stage '{stage}' has no block")
        _check_spans(stage, blocks, end)
        for block in blocks:
            names = kind.functions(plan.host, block)
            got = tuple(f.name for f in block.functions)
            expect(
                got == names,
                f"{block.name} must have the functions {names}, got {shown(str(got))}",
            )
            for function in block.functions:
                _check_function(block, function, kind.signature(plan.host, block, function.name))


def _check_spans(stage: str, blocks: Sequence[Block], end: int) -> None:
    """Check that names count up, and that spans are contiguous from 0 to `end`."""
    at = 0
    for index, block in enumerate(blocks):
        name = f"{stage}-{index}"
        expect(block.name == name, f"block {shown(block.name)} must be named '{name}'")
        start, stop = block.span
        expect(
            start == at and stop > start,
            f"{block.name}.span is {shown(str([start, stop]))}, expected to begin at {at}",
        )
        at = stop
    expect(at == end, f"{blocks[-1].name}.span ends at {at}, expected {end}")


def _check_function(block: Block, function: Function, signature: Signature) -> None:
    where = f"{block.name}.{function.name}"
    _check_side(where, "input", function.inputs, signature.inputs, signature.unread)
    _check_side(where, "output", function.outputs, signature.outputs, frozenset())
    expect(function.caches == signature.caches, f"{where}.caches differ from those of its layers")
    expect(function.chained == signature.chained, f"{where}.chained does not match the next block")


def _check_side(
    where: str,
    side: str,
    tensors: Sequence[Tensor],
    expected: Sequence[Tensor],
    unread: Collection[str],
) -> None:
    by_name = {tensor.name: tensor for tensor in expected}
    names = [tensor.name for tensor in tensors]
    expect(len(set(names)) == len(names), f"{where} has two {side}s of the same name")
    for tensor in tensors:
        known = by_name.get(tensor.name)
        if known is None:
            raise BundleError(f"{MANIFEST}: {where} has an unknown {side} {shown(tensor.name)}")
        expect(
            tensor == known,
            f"{where}.{tensor.name} must be {known.dtype} {list(known.shape)},"
            f" got {tensor.dtype} {list(tensor.shape)}",
        )
    for name in by_name:
        expect(name in names or name in unread, f"{where} lacks the {side} '{name}'")
