"""Matrices of linear layers under each scheme, as OpenVINO reads compressed weights.

    none       f32 [out, in]
    fp16       f16 [out, in] -> Convert
    w8a32      i8 [out, in] -> Convert -> Multiply by scales [out, 1]
    w8a8       the same; the engine has the plugin round activations as it runs
    w8a8s      the same, behind a FakeQuantize of the activations with a static scale (`calibrate`)
    w4g32a32   u4 [out, groups, 32] -> Convert -> Subtract 8 -> Multiply by [out, groups, 1] ->
               Reshape; a matrix whose columns are no multiple of 32 has 8 bits

The plugin multiplies these forms without unpacking them in memory. FakeQuantize has 256 levels
from -128 to 127 times the scale max|x| / 127, and becomes an int8 matmul.

Source: OpenVINO 2026.4, "Low precision transformations" and "Weight compression".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgevlm.bundle.packed import PACKINGS, Packing, pack
from edgevlm.errors import ExportError
from edgevlm.exporters.to_openvino.library import openvino
from edgevlm.exporters.to_openvino.lowering import Converted

Array = NDArray[Any]
Packed = dict[str, dict[str, Array]]  # numbers and scales of a matrix, by its name
SCHEMES = ("none", "fp16", "w8a32", "w8a8", "w8a8s", "w4g32a32")
CALIBRATED = ("w8a8s",)
TABLES = {"none": "f32", "fp16": "f16", "w4g32a32": "w4g32"}  # of others: w8g64
NARROW = PACKINGS["w4g32"]
LEAST = np.float32(1e-12)  # least maximum, for activations that are all 0
SEPARATOR = "#"  # between the name of a weight and its form


@dataclass(frozen=True)
class Compressed:
    """A model with the matrices of linear layers in the forms of a scheme.

    Attributes:
        model: Weights are parameters called NAME#FORM.
        bits: Of a matrix, by name.
    """

    model: Any
    bits: Mapping[str, int]


def table_format(scheme: str) -> str:
    """Format of the embedding table under a scheme."""
    return TABLES.get(scheme, "w8g64")


def matrix_bytes(rows: int, columns: int, scheme: str, stage: str) -> int:
    """Bytes of a linear layer's matrix under a scheme."""
    if scheme == "none":
        return 4 * rows * columns
    if scheme == "fp16":
        return 2 * rows * columns
    if _bits(columns, scheme) == 4:
        return rows * NARROW.bytes(columns)
    return rows * columns + 4 * rows


def compress(converted: Converted, scheme: str) -> Compressed:
    """Put the forms of a scheme in the place of the matrices of linear layers."""
    model, bits = converted.model, dict[str, int]()
    if scheme == "none":
        return Compressed(model, bits)
    rounded: dict[tuple[str, int], Any] = {}
    for parameter in list(model.get_parameters()):
        name = parameter.get_friendly_name()
        if name not in converted.matrices:
            continue
        rows, columns = (int(size) for size in parameter.get_output_shape(0))
        bits[name] = _bits(columns, scheme)
        inputs, unpacked = _unpacked(name, rows, columns, bits[name])
        for reader in parameter.output(0).get_target_inputs():
            if scheme == "w8a8s":
                inputs += _round(reader.get_node(), name, rounded)
            reader.replace_source_output(unpacked.output(0))
        model.add_parameters(inputs)
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return Compressed(model, bits)


def stored(
    name: str, tensors: Mapping[str, Tensor], bits: Mapping[str, int], packed: Packed
) -> bytes:
    """The bytes of a parameter of a `Compressed` model.

    Args:
        name: Its name.
        tensors: The block's weights by traced name.
        bits: Of a matrix, by name.
        packed: Keeps the other part of a rounded matrix until it is stored.

    Raises:
        ExportError: If a layer with a static scale received no image in calibration.
    """
    weight, _, form = name.partition(SEPARATOR)
    if form in ("low", "high"):
        if f"{weight}.top" not in tensors:
            raise ExportError(
                f"no image of --calibrate reached the layer of '{weight}'; add images that do"
            )
        step = np.maximum(tensors[f"{weight}.top"].numpy(), LEAST) / np.float32(127)
        return np.asarray(step * (-128 if form == "low" else 127), np.float32).tobytes()
    matrix: Array = tensors[weight].detach().contiguous().numpy()
    if not form:
        return matrix.tobytes()
    if bits[weight] == 16:
        return matrix.astype(np.float16).tobytes()
    if weight not in packed:
        packing = NARROW if bits[weight] == 4 else Packing(8, matrix.shape[1])
        numbers, scales = pack(matrix, packing)
        signed = numbers if bits[weight] == 4 else numbers ^ 128
        packed[weight] = {"numbers": signed, "scales": scales}
    part = packed[weight].pop(form)
    if not packed[weight]:
        del packed[weight]
    return part.tobytes()


def _bits(columns: int, scheme: str) -> int:
    if scheme == "fp16":
        return 16
    return 4 if scheme.startswith("w4") and columns % NARROW.group == 0 else 8


def _unpacked(name: str, rows: int, columns: int, bits: int) -> tuple[list[Any], Any]:
    """Parameters of a matrix in its form, and the matrix made of them, f32 [rows, columns]."""
    op, types = openvino.opset13, openvino.Type
    kinds = {16: (types.f16, [rows, columns]), 8: (types.i8, [rows, columns])}
    groups = NARROW.groups(columns)
    kind, shape = kinds.get(bits, (types.u4, [rows, groups, NARROW.group]))
    numbers = op.parameter(shape, kind, name=f"{name}{SEPARATOR}numbers")
    values = op.convert(numbers, "f32")
    if bits == 16:
        return [numbers], values
    if bits == 4:
        half = op.convert(op.constant(np.uint8(8), types.u4), "f32")
        values = op.subtract(values, half)
    steps = [rows, groups, 1] if bits == 4 else [rows, 1]
    scales = op.parameter(steps, types.f32, name=f"{name}{SEPARATOR}scales")
    values = op.multiply(values, scales)
    if bits == 4:
        values = op.reshape(values, op.constant(np.asarray([rows, columns])), False)
    return [numbers, scales], values


def _round(product: Any, name: str, rounded: dict[tuple[str, int], Any]) -> list[Any]:
    """Round the activations of a product, once for all layers; gives new parameters."""
    op, source = openvino.opset13, product.input_value(0)
    key = source.get_node().get_friendly_name(), source.get_index()
    inputs = []
    if key not in rounded:
        inputs = [
            op.parameter([], openvino.Type.f32, name=f"{name}{SEPARATOR}{side}")
            for side in ("low", "high")
        ]
        rounded[key] = op.fake_quantize(source, *inputs, *inputs, 256)
    product.input(0).replace_source_output(rounded[key].output(0))
    return inputs
