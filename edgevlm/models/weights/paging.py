"""Weights that stay in their files: a model larger than memory, in float32, operator by operator.

`FileWeight` stands where a parameter of a module stands and has its shape. An operator that takes
it gets its numbers, read from the file and made float32 for the length of the call: all of them,
the rows that a lookup asks for, or, in a product with a large matrix, some rows at a time. The
first `kept_bytes` of a model, in the type of the file, stay in memory once they were read, so that
a small model is read once. `in_memory` has the weights of a module as plain parameters, for a trace
and for many calls.

Each use that is not listed here gets the numbers too: what is forgotten is slow, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from edgevlm.models.weights.headers import PLAIN, Header
from edgevlm.models.weights.sources import Weights, numbers

# Of weights, in the type of their file, of a model that is exported, verified, evaluated.
KEPT_BYTES = 512 << 20
# Numbers of a matrix that a product has at a time: as float32 they fit into a cache.
AT_A_TIME = 1 << 20
# What a tensor is asked that its numbers do not matter for.
_ABOUT = {
    getattr(Tensor, name)
    for name in (
        "dim", "element_size", "is_contiguous", "is_floating_point", "nelement", "numel",
        "requires_grad_", "size", "stride", "__hash__", "__len__",
    )
} | {
    getattr(Tensor, name).__get__
    for name in ("device", "dtype", "grad", "grad_fn", "is_leaf", "layout", "ndim",
                 "requires_grad", "shape")
}  # fmt: skip


class Kept:
    """Bytes of weights that stay in memory once they were read."""

    def __init__(self, most_bytes: int) -> None:
        self.left_bytes = most_bytes

    def takes(self, bytes_: int) -> bool:
        """Whether a weight of this size stays, which then counts."""
        stays = bytes_ <= self.left_bytes
        self.left_bytes -= bytes_ * stays
        return stays


class FileWeight(nn.Parameter):
    """A float32 weight of a model whose numbers are in a file."""

    _weights: Weights
    _header: Header
    _kept: Kept
    _numbers: Tensor | None

    @classmethod
    def of(cls, weights: Weights, header: Header, kept: Kept) -> FileWeight:
        """The weight that a header tells of; one number is in memory."""
        shape = (1,) * len(header.shape)
        stand_in = torch.full(shape, math.nan).expand(header.shape)
        weight: FileWeight = Tensor._make_subclass(cls, stand_in, False)
        weight._weights, weight._header, weight._kept = weights, header, kept
        weight._numbers = None
        return weight

    def read(self) -> Tensor:
        """All its numbers, f32."""
        kept = self.kept()
        return (self._whole() if kept is None else kept).float()

    def kept(self) -> Tensor | None:
        """Its numbers in the file's type, which stay in memory; None where there is no room."""
        if self._numbers is None and self._kept.takes(self._header.bytes):
            self._numbers = self._whole()
        return self._numbers

    @property
    def place(self) -> Hashable:
        """Where its numbers are, which two weights may share."""
        return self._header.file, self._header.start, self._header.shape

    def rows(self, start: int, stop: int) -> Tensor:
        """Some rows of the first axis, f32."""
        if self._numbers is not None:
            return self._numbers[start:stop].float()
        _, *rest = self._header.shape
        each = math.prod(rest)
        return self._part(start * each, stop * each).reshape(-1, *rest).float()

    def of_rows(self, start: int, stop: int) -> FileWeight:
        """A weight of some rows of the first axis, which stay in the file."""
        header, (_, *rest) = self._header, self._header.shape
        each = header.pitch or math.prod(rest) * PLAIN[header.dtype].itemsize
        spanned = replace(
            header,
            shape=(stop - start, *rest),
            start=header.start + start * each,
            stop=header.start + stop * each,
        )
        return FileWeight.of(self._weights, spanned, Kept(0))

    def _whole(self) -> Tensor:
        return self._part(0, math.prod(self._header.shape)).reshape(self._header.shape)

    def _part(self, start: int, stop: int) -> Tensor:
        return numbers(self._weights, self._header, start, stop)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _ABOUT:
                return func(*args, **kwargs)
            if func in _PARTLY and not kwargs.keys() - _KEYWORDS:
                answer = _PARTLY[func](*args, **kwargs)
                if answer is not None:
                    return answer
            args, kwargs = tree_map_only(cls, cls.read, (args, kwargs))
            return func(*args, **kwargs)


@contextmanager
def in_memory(module: nn.Module) -> Iterator[None]:
    """A module whose weights are plain parameters, inside the body."""
    places = [
        (own, name, weight)
        for owner in module.modules()
        for own in (owner._parameters, owner._buffers)
        for name, weight in own.items()
        if isinstance(weight, FileWeight)
    ]
    plain = {id(weight): nn.Parameter(weight.read(), False) for _, _, weight in places}
    try:
        for own, name, weight in places:
            own[name] = plain[id(weight)]
        yield
    finally:
        for own, name, weight in places:
            own[name] = weight


def replace_parameters(model: nn.Module, by_name: Mapping[str, nn.Parameter]) -> None:
    """Put other parameters into a model, also where two modules share one."""
    new = {id(p): by_name[name] for name, p in model.named_parameters() if name in by_name}
    for owner in model.modules():
        for name, parameter in owner._parameters.items():
            if id(parameter) in new:
                owner._parameters[name] = new[id(parameter)]


def _itself(weight: FileWeight) -> FileWeight:
    return weight


def _split(weight: FileWeight, count: int, dim: int = 0) -> tuple[Tensor, ...] | None:
    """`weight.chunk(count)`: each of the same height, but the last; None along another axis."""
    if dim != 0:
        return None
    height = -(-len(weight) // count)
    starts = range(0, len(weight), height)
    return tuple(weight.of_rows(start, min(start + height, len(weight))) for start in starts)


def _rows(weight: Any, index: Any) -> Tensor | None:
    """`weight[index]`; None where the index is not of rows. A slice stays in the file."""
    if not isinstance(weight, FileWeight):
        return None
    if isinstance(index, int):
        index = index % len(weight)
        return weight.rows(index, index + 1)[0]
    if isinstance(index, slice) and index.step in (None, 1):
        start, stop, _ = index.indices(len(weight))
        return weight.of_rows(start, max(start, stop))
    if isinstance(index, np.ndarray) and index.dtype.kind == "i":
        return _looked_up(torch.from_numpy(index % len(weight)), weight)
    return None


def _looked_up(
    ids: Tensor, weight: Any, padding_idx: Any = None, max_norm: Any = None, **_: Any
) -> Tensor | None:
    """`embedding(ids, weight)`; None where rows are scaled, or the ids are of a file."""
    if isinstance(ids, FileWeight) or max_norm is not None:
        return None
    unique, places = np.unique(ids.numpy(), return_inverse=True)
    rows = [weight.rows(int(i), int(i) + 1) for i in unique]
    return torch.cat(rows)[torch.from_numpy(places.reshape(ids.shape))]


def _product(x: Any, weight: Any, bias: Any = None) -> Tensor | None:
    """`linear(x, weight, bias)` of a large matrix, some rows of it at a time; None of others."""
    if not isinstance(weight, FileWeight) or isinstance(x, FileWeight):
        return None
    if weight.numel() <= AT_A_TIME:
        return None
    added = bias.read() if isinstance(bias, FileWeight) else bias
    weight.kept()
    height = max(1, AT_A_TIME // weight.shape[1])
    spans = ((i, min(i + height, len(weight))) for i in range(0, len(weight), height))
    products = [
        nn.functional.linear(x, weight.rows(*span), None if added is None else added[slice(*span)])
        for span in spans
    ]
    return torch.cat(products, dim=-1)


# Operators that take a weight without all of its numbers at once.
_PARTLY: dict[Any, Callable[..., Any]] = {
    Tensor.detach: _itself,
    Tensor.chunk: _split,
    Tensor.__getitem__: _rows,
    nn.functional.embedding: _looked_up,
    nn.functional.linear: _product,
}
_KEYWORDS = {
    "bias", "dim", "max_norm", "norm_type", "padding_idx", "scale_grad_by_freq", "sparse",
}  # fmt: skip
