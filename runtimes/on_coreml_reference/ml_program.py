"""Read an ML program from a saved `.mlpackage`: its operations, and its weights from their file.

    NAME.mlpackage/Manifest.json
    NAME.mlpackage/Data/com.apple.CoreML/model.mlmodel        Model.proto, with one program
    NAME.mlpackage/Data/com.apple.CoreML/weights/weight.bin   blobs, 64-byte headers, little endian

Only the protobuf messages of coremltools are used, not its converter or loader. Every offset and
size is checked, as a package is untrusted input.

Sources: Apple, coremltools 9.0: mlmodel/format/MIL.proto and mlmodel/src/MILBlob/Blob (storage
format version 2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import BundleError
from edgevlm.libraries import silent

Array = NDArray[Any]
# MIL.proto, DataType. In memory float16 is float32 whose values are rounded.
TYPES = {
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 21: "int8", 22: "int16", 23: "int32",
    25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 35: "uint4", 36: "uint2", 37: "uint1",
    38: "uint6", 39: "uint3",
}  # fmt: skip
STORED = {
    "bool": np.bool_, "fp16": np.float16, "fp32": np.float32, "int8": np.int8, "int16": np.int16,
    "int32": np.int32, "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32,
}  # fmt: skip
PACKED = {"int4": 4, "uint4": 4, "uint2": 2, "uint1": 1, "uint6": 6, "uint3": 3}  # bits
# Of the blob file: type number of a header to ours.
BLOBS = {1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4",
         9: "uint1", 10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32",
         15: "uint32"}  # fmt: skip
SENTINEL, HEADER = 0xDEADBEEF, struct.Struct("<IIQQQ")


@dataclass(frozen=True)
class Value:
    """Name, element type and shape of an operation's output or a function's input."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One operation; an input is a list of names or constants."""

    kind: str
    inputs: Mapping[str, tuple[Any, ...]]
    outputs: tuple[Value, ...]


@dataclass(frozen=True)
class MilFunction:
    """One function of a program; `states` are the inputs that it may write to."""

    inputs: tuple[Value, ...]
    states: tuple[Value, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


class Blobs:
    """The weight file of a package; an array that functions share is read once."""

    def __init__(self, data: Array) -> None:
        self.data = data
        self._read: dict[tuple[int, str, tuple[int, ...]], Array] = {}

    def read(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        """The array whose header is at `offset`.

        Raises:
            ValueError: If the header is that of another array, or the array is outside the file.
        """
        key = offset, dtype, shape
        if key not in self._read:
            self._read[key] = self._array(*key)
        return self._read[key]

    def _array(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        data = self.data
        if not 0 <= offset <= data.size - HEADER.size:
            raise ValueError(f"weight at {offset}, the file has {data.size} bytes")
        sentinel, kind, size, start, _ = HEADER.unpack(bytes(data[offset : offset + HEADER.size]))
        count = int(np.prod(shape, dtype=np.int64))
        bits = PACKED.get(dtype) or 8 * np.dtype(STORED[dtype]).itemsize
        if sentinel != SENTINEL or BLOBS.get(kind) != dtype:
            raise ValueError(f"weight at {offset} has no header of {dtype}")
        if start + size > data.size or size != -(-count * bits // 8):
            raise ValueError(f"weight at {offset}: {size} bytes, expected {-(-count * bits // 8)}")
        raw = data[start : start + size]
        if dtype in PACKED:
            return unpack(raw, count, bits, dtype.startswith("int")).reshape(shape)
        return widened(raw.view(STORED[dtype]), dtype).reshape(shape)


def read_package(path: Path) -> dict[str, MilFunction]:
    """Functions of a package by name.

    Raises:
        BundleError: If it is not a package, or a part of it lies outside its file.
    """
    with silent():
        from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    folder = path / "Data" / "com.apple.CoreML"
    try:
        model = Model_pb2.Model.FromString((folder / "model.mlmodel").read_bytes())
        file = folder / "weights" / "weight.bin"
        blobs = Blobs(np.memmap(file, np.uint8, "r") if file.is_file() else np.zeros(0, np.uint8))
        return {
            name: _function(function, blobs)
            for name, function in sorted(model.mlProgram.functions.items())
        }
    except (DecodeError, OSError, KeyError, IndexError, ValueError, TypeError) as cause:
        raise BundleError(f"'{path.name}' is not a complete ML program: {cause}") from cause


def _function(message: Any, blobs: Blobs) -> MilFunction:
    (block,) = message.block_specializations.values()
    values = [_value(item) for item in message.inputs]
    states = {item.name for item in message.inputs if item.type.WhichOneof("type") == "stateType"}
    return MilFunction(
        tuple(value for value in values if value.name not in states),
        tuple(value for value in values if value.name in states),
        tuple(_operation(item, blobs) for item in block.operations),
        tuple(block.outputs),
    )


def _operation(message: Any, blobs: Blobs) -> Operation:
    inputs: dict[str, tuple[Any, ...]] = {}
    for key, argument in message.inputs.items():
        inputs[key] = tuple(
            binding.name
            if binding.WhichOneof("binding") == "name"
            else _constant(binding.value, blobs)
            for binding in argument.arguments
        )
    if message.type == "const":
        inputs["val"] = (_constant(message.attributes["val"], blobs),)
    return Operation(message.type, inputs, tuple(_value(item) for item in message.outputs))


def _value(message: Any) -> Value:
    kind = message.type
    if kind.WhichOneof("type") == "stateType":
        kind = kind.stateType.wrappedType
    return Value(message.name, *_type(kind))


def _type(message: Any) -> tuple[str, tuple[int, ...]]:
    if message.WhichOneof("type") != "tensorType":
        raise ValueError(f"a value of type {message.WhichOneof('type')}, expected a tensor")
    tensor = message.tensorType
    return TYPES[tensor.dataType], tuple(d.constant.size for d in tensor.dimensions)


def _constant(message: Any, blobs: Blobs) -> Any:
    dtype, shape = _type(message.type)
    if message.WhichOneof("value") == "blobFileValue":
        return blobs.read(message.blobFileValue.offset, dtype, shape)
    tensor = message.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    if kind is None:  # protobuf omits empty fields
        return np.zeros(shape, STORED[dtype])
    values = getattr(tensor, kind).values
    if kind == "strings":
        return values[0]
    if kind == "bytes":
        return widened(np.frombuffer(values, STORED[dtype]), dtype).reshape(shape)
    return widened(np.array(list(values), STORED[dtype]), dtype).reshape(shape)


def unpack(raw: Array, count: int, bits: int, signed: bool) -> Array:
    """Numbers of `bits` bits, the lowest bits of the first byte first: int32 [count]."""
    each = np.unpackbits(np.asarray(raw), bitorder="little")[: count * bits].reshape(count, bits)
    numbers = (each.astype(np.int32) << np.arange(bits)).sum(1)
    return (
        np.where(numbers >= 1 << (bits - 1), numbers - (1 << bits), numbers) if signed else numbers
    )


def widened(array: Array, dtype: str) -> Array:
    """float16 as float32, which is faster and holds the same values."""
    return array.astype(np.float32) if dtype == "fp16" else array


def names(inputs: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    """Names of the values that an operation reads."""
    for parts in inputs.values():
        yield from (part for part in parts if isinstance(part, str))
