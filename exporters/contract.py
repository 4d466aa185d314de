"""The contract of an export target: the value `TARGET` of each `to_<name>/target.py`.

    traced functions of one signature          -> `lower` -> a form shared by its blocks
    that form, a block and the block's weights -> `write` -> the block's files

A target overrides the defaults here; generic code reads these attributes alone. The summary, the
schemes and the sizes in bytes are known without a trace, so plans use them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.plan import FileEntry, Requires
from edgevlm.registry import TARGETS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

TABLE_FILE = "table.bin"  # the embedding table; its format is the same for every target


@dataclass(frozen=True)
class TargetOptions:
    """How a block is lowered: the scheme of its stage, and the backend ("" without a choice)."""

    scheme: str
    backend: str = ""


@dataclass(frozen=True)
class SharedMatrix:
    """Place of a block's only matrix in another file: a tied head's rows in the embedding table.

    Attributes:
        file: Name in the block's folder.
        numbers: Offset of its numbers in bytes.
        scales: Offset of its scales in bytes.
    """

    file: str
    numbers: int
    scales: int


def float32_table(scheme: str) -> str:
    """The embedding table as float32, whatever the scheme."""
    return "f32"


def float32_matrix(rows: int, columns: int, scheme: str, stage: str) -> int:
    """Bytes of a float32 matrix, whatever the scheme."""
    return 4 * rows * columns


def float32_number(scheme: str) -> int:
    """Bytes of a float32 number, whatever the scheme."""
    return 4


@dataclass(frozen=True)
class Target:
    """A format that bundles are exported to.

    Attributes:
        summary: One line for `edgevlm targets`.
        schemes: Quantization schemes, the most exact one first; the last has the smallest table.
        requires: Versions of runtimes and formats that a device must offer.
        weight_suffixes: Suffixes of the files that hold mostly weights, beside the table.
        lower: (traced functions of one signature by name, a block of it, options) -> the lowered
            form that `write` takes for every block of the signature. Raises ExportError.
        write: (lowered form, block, its weights by traced name, existing folder, place of its only
            matrix in another file or None) -> the block's functions with their files, relative to
            the folder. Raises ExportError.
        kv_form: Form of the decoder's states, see `bundle.kinds.shared.states.States`.
        kv_dtype: What their numbers are kept in.
        calibrated: Schemes with static scales, found by calibration.
        refused: Schemes without a benefit, with the measurement that shows it.
        unpacked: Schemes whose weights are float32 in memory.
        backends: Schemes of each backend, for targets with several; the first is the default.
        table_format: Scheme -> format of the embedding table, for `Embedding.dtype`.
        shares_table: Whether a tied head reads its rows of the embedding table in the table's file;
            else it has a copy in the form of its own scheme.
        matrix_bytes: Rows, columns, scheme, stage -> bytes of a linear layer's matrix.
        number_bytes: Scheme -> bytes of any other weight.
        head_multiple: Its attention with a cache takes heads whose size is a multiple of this.
        half_arithmetic: Schemes that compute in float16.
    """

    summary: str
    schemes: tuple[str, ...]
    requires: Requires
    weight_suffixes: tuple[str, ...]
    lower: Callable[[Mapping[str, ExportedProgram], Block, TargetOptions], Any]
    write: Callable[
        [Any, Block, Mapping[str, Tensor], Path, SharedMatrix | None], tuple[Function, ...]
    ]
    kv_form: str = "shared_buffer"
    kv_dtype: str = "f32"
    calibrated: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    unpacked: tuple[str, ...] = ()
    backends: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    table_format: Callable[[str], str] = float32_table
    shares_table: bool = False
    matrix_bytes: Callable[[int, int, str, str], int] = float32_matrix
    number_bytes: Callable[[str], int] = float32_number
    head_multiple: int = 1
    half_arithmetic: tuple[str, ...] = ()

    def weights_bytes(self, files: Iterable[FileEntry]) -> int:
        """Bytes of those files of a bundle that hold mostly weights."""
        ends = (*self.weight_suffixes, TABLE_FILE)
        return sum(file.bytes for file in files if file.path.endswith(ends))

    def backend(self, requested: str | None) -> str:
        """The requested backend, else the first; "" for a target without backends."""
        return requested or next(iter(self.backends), "")

    def schemes_of(self, backend: str) -> tuple[str, ...]:
        """The schemes that a backend takes."""
        return self.backends.get(backend, self.schemes)


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        RecipeError: If no target has this name; the message has the nearest name.
        RuntimeLoadError: If a library that it needs is missing; the message has the extra.
    """
    target: Target = TARGETS.load(name).TARGET
    return target
