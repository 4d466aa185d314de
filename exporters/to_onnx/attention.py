"""Attention of an encoder: one operator, or int8 matmuls where a scheme quantizes activations.

    q, k, v -> int8; per head: q k -> softmax -> uint8 -> times v; heads concatenated

ONNX Runtime's MultiHeadAttention is float32, two fifths of the time of an encoder whose linear
layers are int8 matmuls. In int8, queries and values have a scale per head, keys a scale per token
and head, and the softmax a scale per query: a query that attends to many patches loses no more than
one that attends to a few. All scales are dynamic. Keys and values take 7 bits: the sum of two
products then fits the 16 bits in which x86 without VNNI accumulates.

Source: SageAttention (arXiv 2410.02367, section 4) rounds the same four. There the softmax is
rounded before the division by its sum, where its largest number is 1: the same bytes. Its blocks
of queries are heads here, and no mean is subtracted from keys. onnxruntime docs/ContribOperators.md
(MatMulIntegerToFloat, MultiHeadAttention).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgevlm.exporters.to_onnx.linear import DOMAIN, LEAST, Writer

# Scores of a head from which int8 is faster (`tests/benchmarks/attention.py`).
LEAST_SCORES = 400 * 400


def write_attention(node: ir.Node, writer: Writer) -> None:
    """Replace one Attention: query [W, S, H*D], key and value [W, T, H*D].

    A bias is [1, 1, 1, T], or [1, 1, S, T] where each query has its own: then nothing is rounded,
    nor where there are several windows.
    """
    query, key, value, *rest = node.inputs
    assert query is not None and key is not None and value is not None
    bias, heads = next(iter(rest), None), node.attributes["num_heads"].as_int()
    (windows, rows, width), (_, keys, _) = _shape(query), _shape(key)
    shared = windows == 1 and (bias is None or _rows_of_bias(bias) == 1)
    if writer.rounds and shared and rows * keys >= LEAST_SCORES:
        write = _Int8Attention(writer, heads, width // heads)
        writer.replace(node, write.nodes(query, key, value, bias))
        return
    nodes: list[ir.Node] = []
    inputs: list[ir.Value | None] = [query, key, value]
    if (
        bias is not None
    ):  # the operator broadcasts it over heads alone; the two inputs between are unused
        shape = np.asarray([1, 1, rows, keys], np.int64)
        nodes.append(ir.node("Expand", [bias, writer.constant(f"bias.{rows}.{keys}", shape)]))
        inputs += [None, None, nodes[0].outputs[0]]
    nodes.append(ir.node("MultiHeadAttention", inputs, {"num_heads": heads}, domain=DOMAIN))
    writer.replace(node, nodes)


class _Int8Attention:
    """The operators of one attention in int8: H heads of size D, S queries, T keys."""

    def __init__(self, writer: Writer, heads: int, size: int) -> None:
        self._constant, self._heads, self._size = writer.constant, heads, size
        self._nodes: list[ir.Node] = []

    def nodes(
        self, query: ir.Value, key: ir.Value, value: ir.Value, bias: ir.Value | None
    ) -> list[ir.Node]:
        """Nodes of softmax(Q K^T / sqrt(D) + bias) V, in the order of computation."""
        root = self._constant(f"root.{self._size}", np.float32(1 / math.sqrt(self._size)))
        (_, rows, _), (_, keys, width) = _shape(query), _shape(key)
        q, q_step = self._round_heads(query, np.uint8(128), 127)
        v, v_step = self._round_heads(value, np.int8(0), 63)
        k_step = self._steps(key, 63)
        k = self._round(key, k_step, np.int8(0), (keys, self._heads), self._size)
        k = self._then("Transpose", k, perm=[0, 2, 1])
        k = self._then("Reshape", k, self._numbers(width, keys))
        k_step = self._then("Transpose", k_step, perm=[0, 2, 1])
        q_step = self._then("Mul", q_step, root)
        scales = (self._then("Reshape", x, self._numbers(-1)) for x in (q_step, k_step, v_step))
        operands = ((q, 2), (k, 0), (v, 2), *((x, 0) for x in scales))
        heads = zip(*(self._split(x, axis) for x, axis in operands), strict=True)
        added = () if bias is None else (None, self._then("Reshape", bias, self._numbers(-1)))
        head_outputs = [self._head(head, added, rows, keys) for head in heads]
        self._then("Concat", *head_outputs, axis=2)
        return self._nodes

    def _head(
        self, head: tuple[ir.Value, ...], added: Sequence[ir.Value | None], rows: int, keys: int
    ) -> ir.Value:
        """Output [1, S, D] of a head: queries [1, S, D], keys [D, T], values [1, T, D], scales."""
        q, k, v, q_step, k_step, v_step = head
        one, byte = (self._constant(f"{x:.4f}", np.float32(x)) for x in (1, 1 / 255))
        zero = self._constant("zero", np.uint8(128))
        scores = self._then("MatMulIntegerToFloat", q, k, q_step, k_step, zero, *added)
        weights = self._then("Softmax", scores, axis=-1)
        top = self._then("ReduceMax", weights, self._numbers(-1), keepdims=1)
        step = self._then("Mul", top, byte)
        rounded = self._round(weights, step, np.uint8(0), (rows, 1), keys)
        output = self._then("MatMulIntegerToFloat", rounded, v, one, v_step)
        return self._then("Mul", output, step)

    def _steps(self, x: ir.Value, most: int) -> ir.Value:
        """The scale of each row and head, [1, rows, H]; the largest magnitude becomes `most`."""
        split = self._numbers(1, -1, self._heads, self._size)
        sizes = self._then("Reshape", self._then("Abs", x), split)
        top = self._then("ReduceMax", sizes, self._numbers(-1), keepdims=0)
        clamped = self._then("Max", top, self._constant("least", LEAST))
        return self._then("Div", clamped, self._constant(f"most.{most}", np.float32(most)))

    def _round_heads(self, x: ir.Value, zero: np.generic, most: int) -> tuple[ir.Value, ir.Value]:
        """8-bit values with a scale per head, and the scales [1, 1, H]."""
        shape = _shape(x)[1], self._heads
        step = self._then("ReduceMax", self._steps(x, most), self._numbers(1), keepdims=1)
        every = self._then("Expand", step, self._numbers(1, *shape))
        return self._round(x, every, zero, shape, self._size), step

    def _round(
        self, x: ir.Value, step: ir.Value, zero: np.generic, shape: tuple[int, int], run: int
    ) -> ir.Value:
        """8-bit values: `shape` scales, each for `run` elements of a row."""
        name = f"zeros.{zero.dtype}.{zero}.{shape[0]}.{shape[1]}"
        zeros = self._constant(name, np.full((1, *shape), zero))
        return self._then("QuantizeLinear", x, step, zeros, axis=2, block_size=run)

    def _numbers(self, *numbers: int) -> ir.Value:
        name = "numbers." + ".".join(map(str, numbers))
        return self._constant(name, np.asarray(numbers, np.int64))

    def _split(self, x: ir.Value, axis: int) -> Sequence[ir.Value]:
        attributes = {"axis": axis, "num_outputs": self._heads}
        self._nodes.append(ir.node("Split", [x], attributes, num_outputs=self._heads))
        return self._nodes[-1].outputs

    def _then(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        domain = DOMAIN if kind == "MatMulIntegerToFloat" else ""
        self._nodes.append(ir.node(kind, inputs, attributes, domain=domain))
        return self._nodes[-1].outputs[0]


def _rows_of_bias(bias: ir.Value) -> int:
    """Queries that a bias tells apart."""
    assert bias.shape is not None
    return int(bias.shape.numpy()[2])


def _shape(x: ir.Value) -> tuple[int, int, int]:
    """Windows, rows and width of [windows, rows, width]."""
    assert x.shape is not None
    windows, rows, width = (int(n) for n in x.shape.numpy())
    return windows, rows, width
