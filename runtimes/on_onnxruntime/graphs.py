"""ONNX graphs of a bundle as data: their operators, the files that they read, what they may fill.

A graph is untrusted even where its hash fits. Before a session opens it, its operators are those
of `bundle.allowed.onnx_operators`, it contains no other graph, its weights lie in files that the
manifest lists, and no operator fills more than 2^28 elements from a constant size.

Only the necessary protobuf messages of ONNX are declared; other fields are preserved. The protobuf
library comes with ONNX Runtime.

Source: onnx.proto (messages and their field numbers).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle.allowed.onnx_operators import MOST_NODES, known
from edgevlm.bundle.documents import shown
from edgevlm.bundle.files import Bundle
from edgevlm.bundle.functions import Block
from edgevlm.errors import RuntimeLoadError

EXTERNAL = 1
MOST_ELEMENTS = 2**28  # that an operator fills from a constant size: 1 GB of float32
# Where operators read a size: the number of the input.
_SIZES = {"Expand": 1, "Tile": 1, "Pad": 1, "Resize": 3, "Range": 1}
_INT64 = 7
# Fields of each message: number, name, type; `*` is repeated.
_FIELDS: dict[str, Sequence[tuple[int, str, str]]] = {
    "Model": [
        (7, "graph", "Graph"),
        (14, "metadata_props", "Entry*"),
        (25, "functions", "Nothing*"),
    ],
    "Graph": [(1, "node", "Node*"), (5, "initializer", "Tensor*"), (11, "input", "Value*")],
    "Node": [
        (1, "input", "string*"),
        (2, "output", "string*"),
        (4, "op_type", "string"),
        (5, "attribute", "Attribute*"),
        (7, "domain", "string"),
    ],
    "Attribute": [
        (5, "t", "Tensor"),
        (6, "g", "Nothing"),
        (8, "ints", "int64*"),
        (11, "graphs", "Nothing*"),
        (22, "sparse_tensor", "Nothing"),
    ],
    "Tensor": [
        (1, "dims", "int64*"),
        (2, "data_type", "int32"),
        (7, "int64_data", "int64*"),
        (8, "name", "string"),
        (9, "raw_data", "bytes"),
        (13, "external_data", "Entry*"),
        (14, "data_location", "int32"),
    ],
    "Entry": [(1, "key", "string"), (2, "value", "string")],
    "Value": [(1, "name", "string"), (2, "type", "Type")],
    "Type": [(1, "tensor_type", "TensorType")],
    "TensorType": [(1, "elem_type", "int32"), (2, "shape", "Shape")],
    "Shape": [(1, "dim", "Dimension*")],
    "Dimension": [(1, "dim_value", "int64")],
    "Nothing": [],
}


def operator_kinds(artifact: Path) -> frozenset[str]:
    """Kinds of operators in a graph.

    Raises:
        RuntimeLoadError: If it is not an ONNX graph.
    """
    return frozenset(node.op_type for node in read_graph(artifact).graph.node)


def checked_graphs(bundle: Bundle, block: Block) -> dict[str, Path]:
    """The graph of each function of a block, checked.

    Raises:
        BundleError: If a file was changed.
        RuntimeLoadError: If a graph is none that an export writes.
    """
    paths = bundle.files_of(block)
    listed = frozenset(Path(entry.path).name for entry in bundle.weights_of(block))
    for path in paths.values():
        state = path.stat()
        key = (path, state.st_mtime_ns, state.st_ctime_ns, listed)
        if key not in _CHECKED:
            check_graph(path, listed)
            _CHECKED.add(key)
    return paths


def check_graph(artifact: Path, files: Collection[str]) -> None:
    """Refuse a graph that no export writes.

    Args:
        artifact: The file of the graph.
        files: Names of the files of weights beside it.

    Raises:
        RuntimeLoadError: If it has another operator, a graph inside, weights of another file, or
            an operator that fills too much.
    """
    model = read_graph(artifact)
    nodes = model.graph.node
    if len(nodes) > MOST_NODES:
        raise _refusal(artifact, f"{len(nodes)} operators, expected at most {MOST_NODES}")
    if model.functions:
        raise _refusal(artifact, "functions of its own")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        if not known(node.domain, node.op_type):
            domain = f" of {shown(node.domain)}" if node.domain else ""
            raise _refusal(artifact, f"the operator {shown(node.op_type)}{domain}")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise _refusal(artifact, f"a graph inside of {shown(node.op_type)}")
            if node.op_type == "Constant" and attribute.HasField("t"):
                constants[node.output[0] if node.output else ""] = attribute.t
        _check_size(artifact, node, constants)
    for tensor in constants.values():
        _check_place(artifact, tensor, files)


def _check_size(artifact: Path, node: Any, constants: Mapping[str, Any]) -> None:
    """Bound what a node fills from a constant size."""
    place = _SIZES.get(node.op_type)
    if place is None or place >= len(node.input) or node.input[place] not in constants:
        return
    tensor = constants[node.input[place]]
    if tensor.data_type != _INT64 or tensor.data_location == EXTERNAL:
        return
    size = len(tensor.raw_data) - len(tensor.raw_data) % 8
    numbers = list(tensor.int64_data) or np.frombuffer(tensor.raw_data[:size], np.int64).tolist()
    if math.prod(max(1, abs(number)) for number in numbers) > MOST_ELEMENTS:
        raise _refusal(artifact, f"{shown(node.op_type)} to a size of {shown(str(numbers))}")


def _check_place(artifact: Path, tensor: Any, files: Collection[str]) -> None:
    """Check that a weight lies in the graph or in a listed file."""
    if tensor.data_location != EXTERNAL:
        return
    places = [entry.value for entry in tensor.external_data if entry.key == "location"]
    for place in places or [""]:
        if place not in files:
            raise _refusal(artifact, f"weights in {shown(place)}, which the manifest does not list")


def _refusal(artifact: Path, what: str) -> RuntimeLoadError:
    return RuntimeLoadError(f"{artifact.stem} does not load: it has {what}; no export writes that")


def read_graph(artifact: Path) -> Any:
    """The parsed model.

    Raises:
        RuntimeLoadError: If it is not an ONNX graph.
    """
    from google.protobuf.message import DecodeError

    model = _messages()["Model"]()
    try:
        model.ParseFromString(artifact.read_bytes())
    except DecodeError as cause:
        raise RuntimeLoadError(
            f"{artifact.stem} does not load: it is not an ONNX graph of this exporter: {cause!r}"
        ) from cause
    return model


@cache
def _messages() -> dict[str, Any]:
    """Classes of the messages."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    scalars = descriptor_pb2.FieldDescriptorProto
    kinds = {
        "int32": scalars.TYPE_INT32,
        "int64": scalars.TYPE_INT64,
        "string": scalars.TYPE_STRING,
        "bytes": scalars.TYPE_BYTES,
    }
    file = descriptor_pb2.FileDescriptorProto(name="edgevlm/onnx.proto", package="edgevlm.onnx")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for number, field, text in fields:
            kind = text.removesuffix("*")
            label = scalars.LABEL_REPEATED if text.endswith("*") else scalars.LABEL_OPTIONAL
            declared = message.field.add(name=field, number=number, label=label)
            declared.type = kinds.get(kind, scalars.TYPE_MESSAGE)
            if kind not in kinds:
                declared.type_name = f".edgevlm.onnx.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"edgevlm.onnx.{name}"))
        for name in _FIELDS
    }


# Graphs that this process has checked, as blocks are loaded repeatedly.
_CHECKED: set[tuple[Path, int, int, frozenset[str]]] = set()
