"""Linear layers under each scheme: their operators, and the bytes of their matrices.

    none       MatMul with the transposed matrix [in, out]; Gemm for the head, [rows, in]
    fp16       the same; matrices are float16 in the file, and float32 in an open session
    w8a32      the same with packed 8-bit weights (`edgevlm.bundle.packed`)
    w4g32a32   MatMulNBits with packed 4-bit weights, computed in float32
    w4g32a8    the same; activations are rounded to 8 bits, with a scale for each 32 columns
    w8a8       int8 matmul: dynamic scale for each token, weight scale for each output channel
    w8a8s      int8 matmul with one static scale for a layer's activations, found by `calibrate`

Activations are rounded by scale = max|x| / 127, byte = round(x / scale) + 128; those of a single
token, in one operator, by scale = (max(x, 0) - min(x, 0)) / 255 with a zero point. The head of
`w8a8` and `w8a8s` is MatMulNBits in 8 bits, because its matrix is the embedding table. (MatMulNBits
of 8 bits in float32 would be w8a32 too, but ONNX Runtime then unpacks the matrix at every call: a
token of SmolVLM-256M takes ten times as long.) Under `w8a8` and `w8a8s` attention of an encoder is
int8 too, see `attention`.

Source: onnxruntime docs/ContribOperators.md (MatMulNBits, MatMulIntegerToFloat,
DynamicQuantizeMatMul).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor

from edgevlm.bundle.packed import PACKINGS, Packing, pack
from edgevlm.errors import ExportError

Array = NDArray[Any]


@dataclass(frozen=True)
class Format:
    """A scheme: the packing of weights, and how they are multiplied.

    `product`: `float32` unpacks them when a session opens; `bits32` and `bits8` are MatMulNBits in
    float32 and in integers; `rows8` has a scale for each token and for each output channel, and
    `bits8` in the head; `steps8` has one scale for all tokens.
    """

    packing: str
    product: str


FORMATS = {
    "fp16": Format("f16", "float32"),
    "w8a32": Format("w8g64", "float32"),
    "w8a8": Format("w8g64", "rows8"),
    "w8a8s": Format("w8g64", "steps8"),
    "w4g32a32": Format("w4g32", "bits32"),
    "w4g32a8": Format("w4g32", "bits8"),
}
CALIBRATED = ("w8a8s",)
INT8_MATMUL = ("rows8", "steps8")  # with a weight scale for each output channel
LEVELS = {"bits32": 1, "bits8": 4, "rows8": 4, "steps8": 4}  # MatMulNBits' accuracy_level
DOMAIN = "com.microsoft"
LEAST = np.float32(1e-12)  # least maximum, for activations that are all 0


@dataclass(frozen=True)
class StoredWeight:
    """A weight outside the graph: its traced tensor, and the form in which it is stored.

    Forms: `plain`, `transposed`, or `numbers` and `scales` of a packing (without a packing, of
    output channels); `step` is the static scale of a layer's activations.
    """

    name: str
    form: str = "plain"
    packing: str = ""


def matrix_bytes(rows: int, columns: int, scheme: str, stage: str) -> int:
    """Bytes of a linear layer's matrix under a scheme."""
    if scheme not in FORMATS:
        return 4 * rows * columns
    if FORMATS[scheme].product in INT8_MATMUL and stage != "head":
        return rows * columns + 4 * rows
    return rows * PACKINGS[FORMATS[scheme].packing].bytes(columns)


def stored(
    weight: StoredWeight, tensors: Mapping[str, Tensor], packed: dict[str, tuple[Array, Array]]
) -> Array:
    """A weight in its form; `packed` keeps numbers or scales until the other is stored.

    Raises:
        ExportError: If a layer with a static scale received no image in calibration.
    """
    if weight.form == "step":
        if f"{weight.name}.top" not in tensors:
            raise ExportError(
                f"no image of --calibrate reached the layer of '{weight.name}'; add images that do"
            )
        top: Array = tensors[f"{weight.name}.top"].numpy()
        return np.asarray(np.maximum(top, LEAST) / 127, np.float32)
    tensor = tensors[weight.name].detach()
    if weight.form == "plain":
        return tensor.contiguous().numpy()
    if weight.form == "transposed":
        return tensor.T.contiguous().numpy()
    if weight.name not in packed:
        packing = PACKINGS.get(weight.packing) or Packing(8, tensor.shape[1])
        packed[weight.name] = pack(tensor.numpy(), packing)
    numbers, scales = packed[weight.name]
    if weight.form == "scales" or not scales.size:
        del packed[weight.name]
    if weight.form == "scales":
        return scales if weight.packing else scales[:, 0].copy()
    if weight.packing:
        return numbers
    return np.ascontiguousarray((numbers ^ 128).view(np.int8).T)


class Writer:
    """Replaces each Linear of one graph by operators of ONNX.

    Attributes:
        weights: Weights that the graph reads, by name; filled while writing.
    """

    def __init__(self, graph: ir.Graph, scheme: str) -> None:
        self.weights: dict[str, StoredWeight] = {}
        self._graph, self._format = graph, FORMATS.get(scheme)
        self._rows: dict[
            ir.Value, tuple[ir.Value, ir.Value]
        ] = {}  # rounded activations and their scales

    def write_out(self, node: ir.Node) -> None:
        """Replace one Linear."""
        x, matrix, *bias = (value for value in node.inputs if value is not None)
        head = len(x.shape or ()) == 2
        if self._format is None:
            nodes = [self._gemm(x, matrix, bias) if head else self._transposed(x, matrix)]
        elif self._format.product == "float32":
            nodes = self._unpacked(x, matrix, self._format.packing)
        elif self._format.product == "rows8" and not head:
            nodes = self._int8_matmul(x, matrix)
        elif self._format.product == "steps8" and not head:
            nodes = self._static_int8_matmul(x, matrix, bias)
        else:
            nodes = [self._packed(x, matrix, self._format)]
        if bias and bias[0] not in nodes[-1].inputs:
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias[0]]))
        self.replace(node, nodes)

    @property
    def rounds(self) -> bool:
        """Whether linear layers are int8 matmuls."""
        return self._format is not None and self._format.product in INT8_MATMUL

    def replace(self, node: ir.Node, nodes: list[ir.Node]) -> None:
        """Replace a node by nodes; the output of the last takes the place of its output."""
        self._graph.insert_before(node, nodes)
        out, new = node.outputs[0], nodes[-1].outputs[0]
        new.shape, new.type, name = out.shape, out.type, out.name
        out.replace_all_uses_with(new, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        new.name = name

    def _gemm(self, x: ir.Value, matrix: ir.Value, bias: list[ir.Value]) -> ir.Node:
        return ir.node("Gemm", [x, matrix, *bias], {"transB": 1})

    def _transposed(self, x: ir.Value, matrix: ir.Value) -> ir.Node:
        rows, columns = _shape(matrix)
        weight = StoredWeight(str(matrix.name), "transposed")
        turned = self._outside(matrix, weight, (columns, rows), ir.DataType.FLOAT)
        return ir.node("MatMul", [x, turned])

    def _packed(self, x: ir.Value, matrix: ir.Value, how: Format) -> ir.Node:
        """MatMulNBits with a packed matrix [out, in]."""
        packing = PACKINGS[how.packing]
        rows, columns = _shape(matrix)
        inputs = [x, *self._packed_rows(matrix, how.packing)]
        attributes = {"K": columns, "N": rows, "bits": packing.bits, "block_size": packing.group}
        attributes["accuracy_level"] = LEVELS[how.product]
        return ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN)

    def _packed_rows(self, matrix: ir.Value, packing: str) -> list[ir.Value]:
        """Packed numbers of a matrix as MatMulNBits takes them, and their scales."""
        how, (rows, columns) = PACKINGS[packing], _shape(matrix)
        groups, name = how.groups(columns), str(matrix.name)
        weight = StoredWeight(name, "numbers", packing)
        if not groups:
            return [self._outside(matrix, weight, (rows, columns), ir.DataType.FLOAT16)]
        shape = (rows, groups, how.group * how.bits // 8)
        numbers = self._outside(matrix, weight, shape, ir.DataType.UINT8)
        weight = StoredWeight(name, "scales", packing)
        scales = self._outside(matrix, weight, (rows, groups), ir.DataType.FLOAT)
        return [numbers, scales]

    def _unpacked(self, x: ir.Value, matrix: ir.Value, packing: str) -> list[ir.Node]:
        """MatMul with packed weights, which a session unpacks to float32 once, when it opens."""
        numbers, *scales = self._packed_rows(matrix, packing)
        rows, columns = _shape(matrix)
        nodes = [ir.node("Cast", [numbers], {"to": ir.DataType.FLOAT})]

        def then(kind: str, *inputs: ir.Value, **attributes: Any) -> None:
            nodes.append(ir.node(kind, [nodes[-1].outputs[0], *inputs], attributes))

        if scales:
            last = self.constant("last", np.asarray([-1], np.int64))
            then("Sub", self.constant("half", np.float32(128)))
            each = ir.node("Unsqueeze", [scales[0], last])
            nodes.insert(0, each)
            then("Mul", each.outputs[0])
            then("Reshape", self.constant(f"rows.{rows}", np.asarray([rows, -1], np.int64)))
            if columns % PACKINGS[packing].group:
                starts, ends = (np.asarray([n], np.int64) for n in (0, columns))
                axes = self.constant("second", np.asarray([1], np.int64))
                first = self.constant("first", starts)
                then("Slice", first, self.constant(f"columns.{columns}", ends), axes)
        then("Transpose", perm=[1, 0])
        nodes.append(ir.node("MatMul", [x, nodes[-1].outputs[0]]))
        return nodes

    def _int8_matmul(self, x: ir.Value, matrix: ir.Value) -> list[ir.Node]:
        """Int8 matmul, times the scales of output channels, times the dynamic scales of tokens."""
        numbers, scales = self._channels(matrix)
        if x.shape is not None and x.shape[-2] == 1:  # one token: its scale is that of the tensor
            return [ir.node("DynamicQuantizeMatMul", [x, numbers, scales], domain=DOMAIN)]
        nodes = [] if x in self._rows else self._round_rows(x)
        rounded, row_scales = self._rows[x]
        inputs = [rounded, numbers, self.constant("one", np.float32(1)), scales]
        inputs.append(self.constant("zero", np.uint8(128)))
        product = ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN)
        return [*nodes, product, ir.node("Mul", [product.outputs[0], row_scales])]

    def _channels(self, matrix: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Int8 weights [in, out] and a scale for each output channel."""
        name, (rows, columns) = str(matrix.name), _shape(matrix)
        numbers = self._outside(
            matrix, StoredWeight(name, "numbers"), (columns, rows), ir.DataType.INT8
        )
        scales = self._outside(matrix, StoredWeight(name, "scales"), (rows,), ir.DataType.FLOAT)
        return numbers, scales

    def _static_int8_matmul(
        self, x: ir.Value, matrix: ir.Value, bias: list[ir.Value]
    ) -> list[ir.Node]:
        """Int8 matmul, times the scales of output channels and the static scale of activations."""
        numbers, scales = self._channels(matrix)
        zero, nodes = self.constant("zero", np.uint8(128)), []
        if x not in self._rows:
            step = self._outside(
                matrix, StoredWeight(str(matrix.name), "step"), (), ir.DataType.FLOAT
            )
            nodes = [ir.node("QuantizeLinear", [x, step, zero])]
            self._rows[x] = nodes[0].outputs[0], step
        rounded, step = self._rows[x]
        inputs = [rounded, numbers, step, scales, zero, None, *bias]
        return [*nodes, ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN)]

    def _round_rows(self, x: ir.Value) -> list[ir.Node]:
        """8-bit activations and their scales [1, S, 1], shared by the layers that read them."""
        assert x.shape is not None
        *_, count, columns = x.shape.numpy()
        last = self.constant("last", np.asarray([-1], np.int64))
        zeros = self.constant(f"zeros.{count}", np.full((1, count, 1), 128, np.uint8))
        sizes = ir.node("Abs", [x])
        top = ir.node("ReduceMax", [sizes.outputs[0], last], {"keepdims": 1})
        clamped = ir.node("Max", [top.outputs[0], self.constant("least", LEAST)])
        scale = ir.node("Div", [clamped.outputs[0], self.constant("steps", np.float32(127))])
        inputs = [x, scale.outputs[0], zeros]
        # Blocks as long as a row: per axis, ONNX Runtime takes longer for the same bytes.
        rounded = ir.node("QuantizeLinear", inputs, {"axis": -1, "block_size": columns})
        self._rows[x] = rounded.outputs[0], scale.outputs[0]
        return [sizes, top, clamped, scale, rounded]

    def _outside(
        self, matrix: ir.Value, weight: StoredWeight, shape: tuple[int, ...], dtype: ir.DataType
    ) -> ir.Value:
        """The graph's value of a weight in its form, created at first use."""
        name = f"{weight.name}.{weight.form}"
        if name not in self._graph.initializers:
            value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
            value.const_value = matrix.const_value  # a stand-in until `write` knows the offset
            self._graph.initializers[name] = value
            self.weights[name] = weight
        return self._graph.initializers[name]

    def constant(self, name: str, array: Array | np.generic) -> ir.Value:
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
