"""Linear layers under each scheme: their operators, and the bytes of their matrices.

    none              MatMul with the matrix turned, [in, out]; the head's rows as they stand (Gemm)
    w8a32, w4g32a32   MatMulNBits over packed rows (`edgevlm.packed`), computed in float32
    w4g32a8           the same; the rows that come in are rounded to 8 bits run by run
    w8a8              each row that comes in is rounded to 8 bits with one scale, each output
                      channel's weights with another: a product of whole numbers

Rounding rows for `w8a8` is scale = max|x| / 127, byte = round(x / scale) + 128. The head of `w8a8`
is MatMulNBits in 8 bits, because its rows are those of the embedding table.

Source: onnxruntime docs/ContribOperators.md (MatMulNBits, MatMulIntegerToFloat).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor

from edgevlm.packed import PACKINGS, Packing, pack

Array = NDArray[Any]


@dataclass(frozen=True)
class Format:
    """A scheme: the packing of rows, MatMulNBits' accuracy_level, and whether rows are rounded.

    accuracy_level 1 computes in float32, 4 in whole numbers of 8 bits. `whole_rows`: rows that come
    in have one scale each, and so has each output channel; the head keeps the packing.
    """

    packing: str
    level: int
    whole_rows: bool = False


# w8a32 is small and slow: ONNX Runtime unpacks the matrix at every call (docs/benchmarks.md).
FORMATS = {
    "w8a32": Format("w8g64", 1),
    "w8a8": Format("w8g64", 4, whole_rows=True),
    "w4g32a32": Format("w4g32", 1),
    "w4g32a8": Format("w4g32", 4),
}
DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Weight:
    """A weight outside the graph: the traced tensor it is, and in which form.

    Forms: `plain`, `transposed`, or `numbers` and `scales` of a packing; without a packing, of
    output channels.
    """

    name: str
    form: str = "plain"
    packing: str = ""


def matrix_bytes(rows: int, columns: int, scheme: str, stage: str) -> int:
    """Bytes of a linear layer's matrix under a scheme."""
    if scheme not in FORMATS:
        return 4 * rows * columns
    if FORMATS[scheme].whole_rows and stage != "head":
        return rows * columns + 4 * rows
    return rows * PACKINGS[FORMATS[scheme].packing].bytes(columns)


def stored(weight: Weight, tensor: Tensor, packed: dict[str, tuple[Array, Array]]) -> Array:
    """A weight in its form; `packed` keeps numbers and scales that belong together."""
    if weight.form == "plain":
        return tensor.contiguous().numpy()
    if weight.form == "transposed":
        return tensor.T.contiguous().numpy()
    if weight.name not in packed:
        packing = PACKINGS.get(weight.packing) or Packing(8, tensor.shape[1])
        packed[weight.name] = pack(tensor.numpy(), packing)
    numbers, scales = packed[weight.name]
    if weight.form == "scales":
        del packed[weight.name]
        return scales if weight.packing else scales[:, 0].copy()
    if weight.packing:
        return numbers
    return np.ascontiguousarray((numbers ^ 128).view(np.int8).T)


class Writer:
    """Writes operators of ONNX in the place of each Linear of one graph.

    Attributes:
        weights: Weights that the graph reads, by name; filled while writing.
    """

    def __init__(self, graph: ir.Graph, scheme: str) -> None:
        self.weights: dict[str, Weight] = {}
        self._graph, self._format = graph, FORMATS.get(scheme)
        self._rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}  # rounded, and their scales

    def write_out(self, node: ir.Node) -> None:
        """Replace one Linear."""
        x, matrix, *bias = (value for value in node.inputs if value is not None)
        head = len(x.shape or ()) == 2
        if self._format is None:
            nodes = [self._rows_as_they_stand(x, matrix, bias) if head else self._turned(x, matrix)]
        elif self._format.whole_rows and not head:
            nodes = self._whole_numbers(x, matrix)
        else:
            nodes = [self._packed(x, matrix, self._format)]
        if bias and nodes[-1].op_type != "Gemm":
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias[0]]))
        self._graph.insert_before(node, nodes)
        out, new = node.outputs[0], nodes[-1].outputs[0]
        new.shape, new.type, name = out.shape, out.type, out.name
        out.replace_all_uses_with(new, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        new.name = name

    def _rows_as_they_stand(self, x: ir.Value, matrix: ir.Value, bias: list[ir.Value]) -> ir.Node:
        return ir.node("Gemm", [x, matrix, *bias], {"transB": 1})

    def _turned(self, x: ir.Value, matrix: ir.Value) -> ir.Node:
        rows, columns = _shape(matrix)
        weight = Weight(str(matrix.name), "transposed")
        turned = self._outside(matrix, weight, (columns, rows), ir.DataType.FLOAT)
        return ir.node("MatMul", [x, turned])

    def _packed(self, x: ir.Value, matrix: ir.Value, how: Format) -> ir.Node:
        """MatMulNBits with the packed rows of a matrix [out, in]."""
        packing, name = PACKINGS[how.packing], str(matrix.name)
        rows, columns = _shape(matrix)
        groups = packing.groups(columns)
        shape = (rows, groups, packing.group * packing.bits // 8)
        weight = Weight(name, "numbers", how.packing)
        numbers = self._outside(matrix, weight, shape, ir.DataType.UINT8)
        weight = Weight(name, "scales", how.packing)
        scales = self._outside(matrix, weight, (rows, groups), ir.DataType.FLOAT)
        attributes = {"K": columns, "N": rows, "bits": packing.bits, "block_size": packing.group}
        attributes["accuracy_level"] = how.level
        return ir.node("MatMulNBits", [x, numbers, scales], attributes, domain=DOMAIN)

    def _whole_numbers(self, x: ir.Value, matrix: ir.Value) -> list[ir.Node]:
        """A product of whole numbers, times the scales of output channels, times those of rows."""
        name = str(matrix.name)
        rows, columns = _shape(matrix)
        numbers = self._outside(matrix, Weight(name, "numbers"), (columns, rows), ir.DataType.INT8)
        scales = self._outside(matrix, Weight(name, "scales"), (rows,), ir.DataType.FLOAT)
        nodes = [] if x in self._rows else self._round_rows(x)
        rounded, row_scales = self._rows[x]
        inputs = [rounded, numbers, self._constant("one", np.float32(1)), scales]
        inputs.append(self._constant("zero", np.uint8(128)))
        product = ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN)
        return [*nodes, product, ir.node("Mul", [product.outputs[0], row_scales])]

    def _round_rows(self, x: ir.Value) -> list[ir.Node]:
        """Rows of 8 bits and their scales [1, S, 1]; layers that read the same rows share them."""
        assert x.shape is not None
        *_, count, _ = x.shape.numpy()
        last = self._constant("last", np.asarray([-1], np.int64))
        zeros = self._constant(f"zeros.{count}", np.full(count, 128, np.uint8))
        sizes = ir.node("Abs", [x])
        top = ir.node("ReduceMax", [sizes.outputs[0], last], {"keepdims": 1})
        least = self._constant("least", np.float32(1e-12))  # of a row of zeros
        held = ir.node("Max", [top.outputs[0], least])
        scale = ir.node("Div", [held.outputs[0], self._constant("steps", np.float32(127))])
        flat = ir.node("Reshape", [scale.outputs[0], last])
        inputs = [x, flat.outputs[0], zeros]
        rounded = ir.node("QuantizeLinear", inputs, {"axis": len(x.shape) - 2})
        self._rows[x] = rounded.outputs[0], scale.outputs[0]
        return [sizes, top, held, scale, flat, rounded]

    def _outside(
        self, matrix: ir.Value, weight: Weight, shape: tuple[int, ...], dtype: ir.DataType
    ) -> ir.Value:
        """The graph's value of a weight in its form, made when it is first asked for."""
        name = f"{weight.name}.{weight.form}"
        if name not in self._graph.initializers:
            value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
            value.const_value = matrix.const_value  # a stand-in until `write` knows the place
            self._graph.initializers[name] = value
            self.weights[name] = weight
        return self._graph.initializers[name]

    def _constant(self, name: str, array: Array | np.generic) -> ir.Value:
        """A constant inside the graph."""
        name = f"edgevlm.{name}"
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.asarray(array), name=name)
            shape, dtype = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            value = ir.Value(name=name, shape=shape, type=dtype, const_value=tensor)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]


def _shape(matrix: ir.Value) -> tuple[int, int]:
    assert matrix.const_value is not None
    rows, columns = (int(n) for n in matrix.const_value.shape.numpy())
    return rows, columns
