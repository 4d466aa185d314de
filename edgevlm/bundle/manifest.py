"""Read a manifest with suspicion: what the rest of the code relies on is checked here, once.

    1. The file: its size, JSON without repeated keys and NaN, the version, exact types.
    2. The files that it lists: inside the bundle, behind no link, there, of the stated size.
    3. The numbers: shapes, the host's constants, the sequence layout.
    4. The chain: stages, pieces, inputs and outputs fit each other, so that a loop over the blocks
       meets no unknown name and no other shape.

Every refusal is one line with file and field. Contents are checked by `Bundle.file`, when they are
first asked for. Needs neither torch nor any engine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from edgevlm.bundle.documents import DocumentError, read, shown
from edgevlm.bundle.packed import PACKINGS
from edgevlm.bundle.plan import FORMAT_VERSION, SIGNALS, Block, Function, LayoutItem, Plan, Tensor
from edgevlm.errors import BundleError
from edgevlm.recipe import MOST_CHECKED

MANIFEST = "manifest.json"
MANIFEST_LIMIT_BYTES = 32 * 10**6
# No tensor of a function is larger: 2^31 elements are 8 GB of float32.
TENSOR_LIMIT = 2**31
# The most that a trace may have; Core ML takes few more.
DIMENSIONS = 6
KV_LIMIT_BYTES = 64 * 10**9
STAGES = {
    "vision": ("encode",), "reduce": ("reduce",), "decoder": ("prefill", "decode", "check"),
    "head": ("logits", "check"),
}  # fmt: skip
PARTS = {
    "prompt": ("ids", "image", "user_text", "text"), "turn": ("ids", "user_text", "text"),
    "text": ("ids", "user_text", "text"),
    "image": ("ids", "visual", "timestamp", "duration", "text"),
}  # fmt: skip
CHOICES = {
    "kind": ("vlm",), "host.positions": ("contiguous", "original"),
    "host.kv.form": ("shared_buffer", "states"), "host.kv.dtype": ("f32", "f16"),
    "host.embedding.dtype": ("f32", *PACKINGS),
    "host.image.global_view": ("first", "last"),
    "host.image.resample": ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"),
}  # fmt: skip


def read_manifest(folder: Path) -> Plan:
    """The checked manifest of the bundle in `folder`.

    Raises:
        BundleError: If anything is not as it must be; one line with file and field.
    """
    plan = _parse(folder / MANIFEST)
    _check_files(folder, plan)
    _check_host(plan)
    _check_layout(plan)
    _check_functions(plan)
    _check_chain(plan)
    return plan


def _parse(path: Path) -> Plan:
    if path.is_symlink():
        raise BundleError(f"{MANIFEST} is a symbolic link; a bundle has none")
    if not path.is_file():
        raise BundleError(f"'{path.parent}' has no {MANIFEST}: it is not a bundle")
    if path.stat().st_size > MANIFEST_LIMIT_BYTES:
        raise BundleError(f"{MANIFEST} is larger than {MANIFEST_LIMIT_BYTES} bytes")
    try:
        document = json.loads(
            path.read_text("utf-8"), object_pairs_hook=_object, parse_constant=_constant
        )
    except (ValueError, RecursionError, OSError) as cause:
        raise BundleError(f"{MANIFEST} is not valid JSON: {cause}") from cause
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST}: format_version is {shown(version)}, this edgevlm reads {FORMAT_VERSION};"
            " export the model again"
        )
    try:
        return read(Plan, document, MANIFEST)
    except (DocumentError, RecursionError) as cause:
        raise BundleError(str(cause)) from cause


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return document


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _check_files(folder: Path, plan: Plan) -> None:
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
        except OSError as cause:  # such as a name that is too long for the file system
            raise BundleError(f"{field} cannot be read: {cause.strerror}") from cause
    for file in (*(f.file for b in plan.blocks for f in b.functions), plan.host.embedding.file):
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
        raise BundleError(f"{name} has {size} bytes, the manifest says {shown(expected)}")


def _check_host(plan: Plan) -> None:
    host, image, kv = plan.host, plan.host.image, plan.host.kv
    numbers = {
        "image.height": image.height,
        "image.width": image.width,
        "image.rows": image.rows,
        "image.columns": image.columns,
        "image.frames": image.frames,
        "image.views": image.views,
        "embedding.rows": host.embedding.rows,
        "embedding.columns": host.embedding.columns,
        "kv.layers": kv.layers,
        "kv.heads": kv.heads,
        "kv.head_size": kv.head_size,
        "kv.tokens": kv.tokens,
        "chunk": host.chunk,
        "vocabulary": host.vocabulary,
    }
    for name, value in numbers.items():
        _expect(1 <= value <= TENSOR_LIMIT, f"host.{name} is {shown(value)}")
    for field, known in CHOICES.items():
        choice: Any = plan
        for part in field.split("."):
            choice = getattr(choice, part)
        _expect(choice in known, f"{field} is {shown(choice)}, known: {', '.join(known)}")
    if kv.gone:
        good = len(kv.gone) == kv.layers and list(kv.gone) == sorted(kv.gone)
        good = good and kv.gone[0] >= 0 and kv.gone[-1] < kv.tokens
        _expect(good, f"host.kv.gone is {shown(str(list(kv.gone)))} for {kv.layers} layers")
    _expect(kv.bytes <= KV_LIMIT_BYTES, f"host.kv needs {kv.bytes} bytes")
    _expect(
        host.check in (0, *range(2, MOST_CHECKED + 1))
        and host.check <= kv.tokens
        and not (host.check and kv.gone),
        f"host.check is {shown(host.check)}, expected 0 or 2 to {MOST_CHECKED} rows of the cache",
    )
    _expect(host.chunk <= kv.tokens, f"host.chunk {host.chunk} is more than kv.tokens {kv.tokens}")
    _expect(host.vocabulary <= host.embedding.rows, "host.vocabulary is more than embedding.rows")
    tiles = image.rows * image.columns
    _expect(image.frames == 1 or tiles == 1, "host.image has frames and tiles")
    _expect(min(image.std) > 0, f"host.image.std is {list(image.std)}, it must be above 0")
    _expect(
        2 * len(host.rope.inverse_frequencies) == kv.head_size,
        f"host.rope has {len(host.rope.inverse_frequencies)} frequencies, half of kv.head_size"
        f" {kv.head_size} is expected",
    )
    entry = next(f for f in plan.files if f.path == host.embedding.file)
    _expect(
        entry.bytes == host.embedding.bytes,
        f"host.embedding needs {host.embedding.bytes} bytes, '{entry.path}' has {entry.bytes}",
    )


def _check_layout(plan: Plan) -> None:
    _expect(bool(plan.sites), "sites is empty")
    _expect(any(site.site == "tokens" for site in plan.sites), "sites has no site 'tokens'")
    _expect(
        1 <= plan.visual_tokens <= TENSOR_LIMIT, f"sites has {shown(plan.visual_tokens)} tokens_out"
    )
    for name, kinds in PARTS.items():
        for index, part in enumerate(getattr(plan.layout, name)):
            _check_part(plan, part, kinds, f"layout.{name}[{index}]")


def _check_part(plan: Plan, part: LayoutItem, kinds: tuple[str, ...], where: str) -> None:
    known = ", ".join(kinds)
    _expect(part.kind in kinds, f"{where}.kind is {shown(part.kind)}, known here: {known}")
    rows, frames = plan.host.embedding.rows, plan.host.image.frames
    _expect(all(0 <= i < rows for i in part.ids), f"{where} has an id outside the embedding table")
    if part.kind == "visual":
        inside = 0 <= part.start <= part.stop <= TENSOR_LIMIT
        _expect(inside, f"{where} has the range {shown(part.start)}:{shown(part.stop)}")
    if part.kind == "timestamp":
        inside = 0 <= part.start < frames
        _expect(inside, f"{where}.start is {shown(part.start)} of {frames} frames")


def _check_functions(plan: Plan) -> None:
    for block in plan.blocks:
        size = block.weights_bytes
        _expect(0 <= size <= 4 * TENSOR_LIMIT, f"{block.name}.weights_bytes is {shown(size)}")
        for function in block.functions:
            _expect(function.flops >= 0, f"{block.name}.{function.name}.flops is below 0")
            for tensor in (*function.inputs, *function.outputs):
                where = f"{block.name}.{function.name}.{tensor.name}"
                shape = tensor.shape
                good = len(shape) <= DIMENSIONS and all(1 <= d <= TENSOR_LIMIT for d in shape)
                good = good and math.prod(shape) <= TENSOR_LIMIT
                _expect(good, f"{where} has the shape {shown(str(list(shape)))}")
                known = tensor.dtype in ("f32", "i32")
                _expect(known, f"{where} has the dtype {shown(tensor.dtype)}")


def _check_chain(plan: Plan) -> None:
    host, known = plan.host, ", ".join(STAGES)
    for block in plan.blocks:
        where = f"block {shown(block.name)}.stage"
        _expect(block.stage in STAGES, f"{where} is {shown(block.stage)}, known: {known}")
    for stage, known_functions in STAGES.items():
        blocks = plan.stage(stage)
        functions = tuple(name for name in known_functions if name != "check" or host.check)
        _expect(bool(blocks), f"the stage '{stage}' has no block")
        for index, block in enumerate(blocks):
            _expect(
                block.name == f"{stage}-{index}",
                f"block {shown(block.name)} must be named '{stage}-{index}'",
            )
            names = tuple(f.name for f in block.functions)
            _expect(
                names == functions,
                f"{block.name} must have the functions {functions}, got {shown(str(names))}",
            )
        lengths = {"reduce": 1, "decoder": host.kv.layers, "head": host.vocabulary}
        _check_pieces(blocks, lengths.get(stage))
    _expect(len(plan.stage("reduce")) == 1, "the stage 'reduce' has more than one block")
    _check_vision_and_reduce(plan)
    if host.kv.gone:
        for index in (0, 1):
            _check_pruned(plan, index)
    else:
        for block in plan.stage("decoder"):
            for function in block.functions:
                rows = {"prefill": host.chunk, "decode": 1, "check": host.check}[function.name]
                _check_decoder(plan, block, function, rows)
    for block in plan.stage("head"):
        for function in block.functions:
            rows = {"logits": 1, "check": host.check}[function.name]
            hidden = [Tensor("hidden", "f32", (1, rows, host.embedding.columns))]
            logits = [Tensor("logits", "f32", (rows, block.span[1] - block.span[0]))]
            _check_signature(block, function, hidden, logits)


def _check_pieces(blocks: tuple[Block, ...], length: int | None) -> None:
    at = 0
    for block in blocks:
        start, stop = block.span
        _expect(
            start == at and stop > start,
            f"{block.name}.span is {shown(str([start, stop]))}, it must begin at {at}",
        )
        at = stop
    _expect(
        length is None or at == length, f"{blocks[-1].name}.span ends at {at}, expected {length}"
    )


def _check_vision_and_reduce(plan: Plan) -> None:
    image, channels = plan.host.image, plan.host.embedding.columns
    vision = plan.stage("vision")
    given = [Tensor("pixel_values", "f32", (1, 3, image.height, image.width))]
    signals: list[Tensor] = []
    for block in vision:
        function = block.functions[0]
        extra = [t for t in function.outputs if t.name in SIGNALS]
        signals += extra
        _expect(len(function.outputs) > 0, f"{block.name}.encode gives nothing")
        first = "features" if block is vision[-1] else "hidden_out"
        got = function.outputs[0].name
        _expect(got == first, f"{block.name}.encode must give '{first}' first, got {shown(got)}")
        made = [Tensor(first, "f32", function.outputs[0].shape)]
        if block is not vision[-1] and any(t.name == "size_out" for t in function.outputs):
            made += _merged(block, made[0].shape, given)
        unused = ("size", "origin")  # the connector asks for no size, many layers for no origin
        _check_signature(block, function, given, [*made, *extra], optional=unused)
        new = [Tensor(t.name.removesuffix("_out"), t.dtype, t.shape) for t in made]
        given = [*new, *given[len(new) :]]
    shape = given[0].shape
    _expect(len(shape) == 3 and shape[2] == channels, f"{vision[-1].name} gives {list(shape)}")
    (reduce,) = plan.stage("reduce")
    kept, views = plan.visual_tokens, image.views
    names = [signal.name for signal in signals]
    _expect(len(set(names)) == len(names), "two vision blocks give a signal of one name")
    joined = [_of_all_views(signal, shape[1], views) for signal in signals]
    _expect(
        not (plan.calibrated and plan.host.kv.gone),
        "reduce-0 gives 'log_sizes', which no decoder block takes",
    )
    _check_signature(
        reduce,
        reduce.functions[0],
        [Tensor("features", "f32", (1, views * shape[1], channels)), *joined],
        [
            Tensor("visual_tokens", "f32", (1, kept, channels)),
            Tensor("kept_positions", "i32", (1, kept)),
            *([Tensor("log_sizes", "f32", (1, kept))] if plan.calibrated else []),
        ],
    )


def _merged(block: Block, hidden: tuple[int, ...], given: list[Tensor]) -> list[Tensor]:
    """Size and origin, which go beside hidden [1, n, D] where tokens have merged."""
    outputs = block.functions[0].outputs
    origin = next((t.shape for t in outputs if t.name == "origin_out"), (1, 1))
    before = next((t.shape for t in given if t.name == "origin"), origin)
    good = len(hidden) == 3 and len(origin) == 2 and origin[0] == 1 and origin == before
    _expect(good, f"{block.name}.encode.origin_out has the shape {shown(str(list(origin)))}")
    return [Tensor("size_out", "f32", (1, hidden[1], 1)), Tensor("origin_out", "i32", origin)]


def _of_all_views(signal: Tensor, tokens: int, views: int) -> Tensor:
    """What `reduce` takes of a signal [1, N] or [1, N, E] of one view."""
    shape = signal.shape
    good = len(shape) in (2, 3) and shape[:2] == (1, tokens) and signal.dtype == "f32"
    _expect(good, f"the signal '{signal.name}' is {signal.dtype} {list(shape)}")
    return Tensor(signal.name, "f32", (1, views * tokens, *shape[2:]))


def _check_decoder(plan: Plan, block: Block, function: Function, rows: int) -> None:
    kv, channels = plan.host.kv, plan.host.embedding.columns
    caches = _caches(plan, block, function)
    inputs = [
        Tensor("hidden", "f32", (1, rows, channels)),
        Tensor("cos", "f32", (1, rows, kv.head_size)),
        Tensor("sin", "f32", (1, rows, kv.head_size)),
        Tensor("mask", "f32", (1, 1, rows, kv.tokens)),
        Tensor("position", "i32", (1,)),
        *([Tensor("bias", "f32", (1, 1, 1, kv.tokens))] if plan.calibrated else []),
        *(Tensor(f"past_{part}", "f32", shape) for part, shape in caches),
    ]
    outputs = [
        Tensor("hidden_out", "f32", (1, rows, channels)),
        *(Tensor(f"present_{part}", "f32", shape) for part, shape in caches),
    ]
    _check_signature(block, function, inputs, outputs, optional=("mask",))


def _check_pruned(plan: Plan, index: int) -> None:
    """`prefill` (index 0) or `decode` (1) of all blocks, where visual tokens leave on the way."""
    host, kv = plan.host, plan.host.kv
    rows = (host.chunk, 1)[index]
    given = [
        Tensor("hidden", "f32", (1, rows, host.embedding.columns)),
        Tensor("cos", "f32", (1, rows, kv.head_size)),
        Tensor("sin", "f32", (1, rows, kv.head_size)),
    ]
    words = ("visual_rows", "last") if index == 0 else ("position", "pruned")
    given += [Tensor(words[0], "i32", (1, plan.visual_tokens) if index == 0 else (1,))]
    given += [Tensor(words[1], "i32", (1,))]
    blocks = plan.stage("decoder")
    for block in blocks:
        function = block.functions[index]
        caches = _caches(plan, block, function)
        past = [Tensor(f"past_{part}", "f32", shape) for part, shape in caches]
        made = [given[0]]
        if index == 0 and block is blocks[-1]:
            made = [Tensor("hidden", "f32", (1, 1, host.embedding.columns))]
        elif index == 0 and any(t.name == "last_out" for t in function.outputs):
            left, visual = (
                next((t.shape for t in function.outputs if t.name == name), ())
                for name in ("hidden_out", "visual_rows_out")
            )
            good = len(left) == 3 and len(visual) == 2 and visual[0] == 1 and left[1] < rows
            _expect(good, f"{block.name}.prefill.hidden_out has the shape {shown(str(list(left)))}")
            rows = left[1]
            made = [
                Tensor("hidden", "f32", (1, rows, host.embedding.columns)),
                Tensor("cos", "f32", (1, rows, kv.head_size)),
                Tensor("sin", "f32", (1, rows, kv.head_size)),
                Tensor("visual_rows", "i32", visual),
                Tensor("last", "i32", (1,)),
            ]
        outputs = [Tensor(f"{t.name}_out", t.dtype, t.shape) for t in made]
        outputs += [Tensor(f"present_{part}", "f32", shape) for part, shape in caches]
        _check_signature(block, function, [*given, *past], outputs, optional=words)
        given = [*made, *given[len(made) :]]


def _caches(
    plan: Plan, block: Block, function: Function
) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Name and shape of each cache of a block."""
    start, stop = block.span
    most = 5 + 2 * (stop - start)  # before lists of that length are made
    _expect(
        2 * (stop - start) < len(function.outputs) <= most,
        f"{block.name}.{function.name} has {len(function.outputs)} outputs for {stop - start}"
        " layers",
    )
    return [
        (f"{part}_{layer - start}", plan.host.kv.shape(layer))
        for layer in range(start, stop)
        for part in ("key", "value")
    ]


def _check_signature(
    block: Block,
    function: Function,
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    optional: tuple[str, ...] = (),
) -> None:
    where = f"{block.name}.{function.name}"
    sides = (("input", inputs, function.inputs), ("output", outputs, function.outputs))
    for side, expected, got in sides:
        wanted = {tensor.name: tensor for tensor in expected}
        names = [tensor.name for tensor in got]
        _expect(len(set(names)) == len(names), f"{where} has two {side}s of one name")
        for tensor in got:
            want = wanted.get(tensor.name)
            if want is None:
                raise BundleError(f"{MANIFEST}: {where} has an unknown {side} {shown(tensor.name)}")
            _expect(
                tensor == want,
                f"{where}.{tensor.name} must be {want.dtype} {list(want.shape)},"
                f" got {tensor.dtype} {list(tensor.shape)}",
            )
        for name in wanted:
            _expect(name in names or name in optional, f"{where} lacks the {side} '{name}'")


def _expect(good: bool, message: str) -> None:
    if not good:
        raise BundleError(f"{MANIFEST}: {message}")
