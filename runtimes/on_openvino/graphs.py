"""Graphs of a bundle as OpenVINO reads them, checked before they are compiled.

A graph is untrusted even where its hash fits. It is plain XML without entities; its layers are
operators of OpenVINO's own sets, none of which runs another graph or draws numbers; every constant
lies inside the block's weight file; every shape is static, and no value has more than 2^28 numbers.

`Core.read_model` reads the two files that it is given, and loads no library: extensions are loaded
by `add_extension` alone, which nobody calls.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgevlm.bundle.documents import shown
from edgevlm.errors import RuntimeLoadError

MOST_BYTES = 2**26  # of a graph
MOST_LAYERS = 2**17
MOST_ELEMENTS = 2**28  # of a value that is no weight: 1 GB of float32
# Operators that run other graphs, keep a state, draw numbers, or whose results depend on data.
_REFUSED = """
    Assign ExternalFrameworkFunction If Loop Multinomial NonMaxSuppression NonZero RandomUniform
    ReadValue TensorIterator Unique
"""
REFUSED = frozenset(_REFUSED.split())
_SETS = re.compile(r"opset\d{1,2}")
_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_BITS = {"boolean": 8, "u1": 1, "u4": 4, "i4": 4, "f16": 16, "bf16": 16, "f32": 32, "f64": 64} | {
    f"{sign}{bits}": bits for sign in "iu" for bits in (8, 16, 32, 64)
}


def checked_model(core: Any, artifact: Path, weights: Path | None) -> Any:
    """The model of a graph.

    Args:
        core: OpenVINO's core.
        artifact: The file of the graph.
        weights: The file of its constants; None if the block has none.

    Raises:
        RuntimeLoadError: If no export writes such a graph.
    """
    check_graph(artifact, weights.stat().st_size if weights else 0)
    model = core.read_model(artifact, weights) if weights else core.read_model(artifact)
    for node in model.get_ops():
        for output in node.outputs():
            shape = output.get_partial_shape()
            if shape.is_dynamic:
                raise _refusal(artifact, "a shape that is not static")
            elements = math.prod(map(int, output.get_shape()))
            if elements > MOST_ELEMENTS and node.get_type_name() != "Constant":
                raise _refusal(artifact, f"a value of shape {list(output.get_shape())}")
    return model


def check_graph(artifact: Path, available: int) -> None:
    """Refuse a graph that no export writes.

    Args:
        artifact: The file of the graph.
        available: Bytes of the weight file.

    Raises:
        RuntimeLoadError: If it is no graph, or has what the module's docstring excludes.
    """
    size = artifact.stat().st_size
    if size > MOST_BYTES:
        raise _refusal(artifact, f"{size} bytes, expected at most {MOST_BYTES}")
    text = artifact.read_bytes()
    if b"<!" in text or b"<?" in text:  # entities, comments, instructions
        raise _refusal(artifact, "a declaration")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as cause:
        raise RuntimeLoadError(
            f"{artifact.stem} does not load: it is not a graph of this exporter: {cause}"
        ) from cause
    layers = list(root.iter("layer"))
    listed = len(root.findall("layers/layer"))
    if root.tag != "net" or listed != len(layers) or listed > MOST_LAYERS:
        raise _refusal(artifact, f"{len(layers)} layers that are not one list")
    for layer in layers:
        kind = layer.get("type", "")
        if not _SETS.fullmatch(layer.get("version", "")) or kind in REFUSED:
            of = shown(layer.get("version", ""))
            raise _refusal(artifact, f"the operator {shown(kind)} of {of}")
        if kind == "Const":
            _check_constant(artifact, layer, available)


def _check_constant(artifact: Path, layer: Any, available: int) -> None:
    """Check that a constant has the bytes of its shape, inside the weight file."""
    values = layer.find("data")
    said = {} if values is None else values.attrib
    sizes = [size.strip() for size in said.get("shape", "").split(",") if size.strip()]
    numbers = [*sizes, said.get("offset", ""), said.get("size", "")]
    bits = _BITS.get(said.get("element_type", ""))
    if bits is None or not all(map(_NUMBER.fullmatch, numbers)):
        raise _refusal(artifact, f"a constant with {shown(str(dict(said)))}")
    *shape, offset, size = map(int, numbers)
    if size != -(-math.prod(shape) * bits // 8) or offset + size > available:
        raise _refusal(
            artifact, f"a constant of {size} bytes at {offset} of {available}, shape {shape}"
        )


def _refusal(artifact: Path, what: str) -> RuntimeLoadError:
    return RuntimeLoadError(f"{artifact.stem} does not load: it has {what}; no export writes that")
