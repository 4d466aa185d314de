"""OpenVINO: one `.xml` graph (IR, version 11) per function, one weight file per block.

    traced function -> OpenVINO's frontend, weights as inputs -> the scheme's forms of matrices
    -> graph as text, once per signature -> weights become constants at an offset, block by block

The functions of a block read their weights from one file. The host owns the caches: a function
reads them as plain inputs and gives the new rows, which the engine writes in place (`lowering`).
Names of a graph are numbers, except those of its inputs and outputs, so that the same recipe gives
the same bytes.

`linear` has the forms of a linear layer under each scheme.

Source: OpenVINO 2026.4, "IR format" and its operation sets.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from torch import Tensor
from torch.export import ExportedProgram

from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.plan import Requires
from edgevlm.errors import ExportError
from edgevlm.exporters.contract import SharedMatrix, Target, TargetOptions
from edgevlm.exporters.repeats import without_repeats
from edgevlm.exporters.to_openvino.library import openvino
from edgevlm.exporters.to_openvino.linear import (
    CALIBRATED,
    SCHEMES,
    Packed,
    compress,
    matrix_bytes,
    stored,
    table_format,
)
from edgevlm.exporters.to_openvino.lowering import ROWS, convert
from edgevlm.libraries import first_line, silent

ALIGN_BYTES = 64
GRAPH, WEIGHTS = ".xml", ".weights"  # suffixes of the files
RELEASE = "2026.4"
_UNKNOWN = re.compile(r"\b(aten\.\w+\.\w+)")  # in the frontend's report of many lines


@dataclass(frozen=True)
class Graph:
    """A function's graph without weights.

    Attributes:
        root: The document; constants have no offset yet.
        slots: Its constants: the name of a weight of the block, or the bytes that all blocks have.
        inputs: Names of the inputs that it reads.
    """

    root: ElementTree.Element
    slots: tuple[tuple[str | bytes, ElementTree.Element], ...]
    inputs: frozenset[str]


@dataclass(frozen=True)
class Lowered:
    """The graphs of one signature by function, and bits of matrices by name."""

    graphs: Mapping[str, Graph]
    bits: Mapping[str, int]


def lower(programs: Mapping[str, ExportedProgram], block: Block, options: TargetOptions) -> Lowered:
    """Convert the traced functions of one signature to graphs without weights.

    Args:
        programs: Traces by function.
        block: One block of the signature.
        options: With one of the target's schemes.

    Raises:
        ExportError: If OpenVINO cannot convert a graph.
    """
    graphs, bits = dict[str, Graph](), dict[str, int]()
    for name, program in programs.items():
        function = block.function(name)
        try:
            with without_repeats(), silent():
                converted = convert(program, function)
                compressed = compress(converted, options.scheme)
            bits |= compressed.bits
            graphs[name] = _graph(compressed.model, function)
        except Exception as cause:  # of many types; its first line is the reason
            operator = _UNKNOWN.search(str(cause))
            line = f"no translation of '{operator[1]}'" if operator else first_line(cause)
            message = f"{block.name}.{name} does not convert to OpenVINO: {line}"
            raise ExportError(message) from cause
    return Lowered(graphs, bits)


def write(
    lowered: Lowered,
    block: Block,
    tensors: Mapping[str, Tensor],
    folder: Path,
    shared: SharedMatrix | None,
) -> tuple[Function, ...]:
    """Write the block's graphs and weights into `folder`; return its functions with their files.

    Args:
        lowered: Graphs of the block's signature.
        block: The block.
        tensors: Its weights by traced name.
        folder: An existing folder.
        shared: Not used: a tied head has a copy of its matrix.

    Raises:
        ExportError: If a layer has no static scale.
    """
    places = dict[str | bytes, tuple[int, int]]()
    packed: Packed = {}
    graphs = [lowered.graphs[function.name] for function in block.functions]
    if any(graph.slots for graph in graphs):
        with (folder / f"{block.name}{WEIGHTS}").open("wb") as out:
            for graph in graphs:
                for key, _ in graph.slots:
                    if key not in places:
                        data = (
                            stored(key, tensors, lowered.bits, packed)
                            if isinstance(key, str)
                            else key
                        )
                        out.write(b"\0" * (-out.tell() % ALIGN_BYTES))
                        places[key] = out.tell(), len(data)
                        out.write(data)
    functions = []
    for function, graph in zip(block.functions, graphs, strict=True):
        for key, layer in graph.slots:
            values = layer.find("data")
            assert values is not None
            offset, size = places[key]
            values.attrib |= {"offset": str(offset), "size": str(size)}
        graph.root.set("name", f"{block.name}.{function.name}")
        file = folder / f"{block.name}.{function.name}{GRAPH}"
        file.write_bytes(ElementTree.tostring(graph.root) + b"\n")
        inputs = tuple(spec for spec in function.inputs if spec.name in graph.inputs)
        functions.append(replace(function, file=file.name, inputs=inputs))
    return tuple(functions)


def _graph(model: object, function: Function) -> Graph:
    """A model as a document: weights are constants without a place, names are numbers."""
    with tempfile.TemporaryDirectory() as folder:
        file, data = Path(folder) / f"graph{GRAPH}", Path(folder) / "graph.bin"
        openvino.serialize(model, file, data)
        root = ElementTree.fromstring(file.read_bytes())
        numbers = data.read_bytes() if data.exists() else b""
    inputs = {tensor.name for tensor in function.inputs}
    outputs = {tensor.name for tensor in function.outputs}
    slots, read = list[tuple[str | bytes, ElementTree.Element]](), set[str]()
    for parent in [root, *root.iter()]:
        for info in parent.findall("rt_info"):
            parent.remove(info)
    for port in root.iter("port"):
        port.attrib.pop("names", None)
    for layer in root.iter("layer"):
        kind, name, values = layer.get("type"), layer.get("name", ""), layer.find("data")
        if kind == "Parameter" and name not in inputs:
            layer.set("type", "Const")
            slots.append((name, layer))
        elif kind == "Parameter":
            read.add(name)
            continue
        elif kind == "Const" and values is not None:
            start, size = int(values.get("offset", 0)), int(values.get("size", 0))
            slots.append((numbers[start : start + size], layer))
        if kind != "Result" or name.partition(ROWS)[0] not in outputs:
            layer.set("name", str(layer.get("id")))
        layer.attrib.pop("output_names", None)
    ElementTree.indent(root, " ")
    return Graph(root, tuple(slots), frozenset(read))


TARGET = Target(
    summary=f"OpenVINO IR for OpenVINO {RELEASE} and newer (x86 and ARM CPUs); weights of 32, 16, 8"
    " or 4 bits",
    schemes=SCHEMES,
    requires=Requires((("openvino", RELEASE),)),
    weight_suffixes=(WEIGHTS,),
    lower=lower,
    write=write,
    calibrated=CALIBRATED,
    table_format=table_format,
    matrix_bytes=matrix_bytes,
)
