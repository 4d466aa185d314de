"""What a target of an export is: the value `TARGET` of each `to_<name>/target.py`.

    traced functions of one signature -> `lower` -> what its blocks share
    that, a block and its weights     -> `write` -> the block's files

A target says what differs from the defaults here; generic code asks for nothing else. The summary,
the schemes and the bytes are known without tracing anything, so a plan is made with them.
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

TABLE_FILE = "table.bin"  # the embedding table: of every target, in one format


@dataclass(frozen=True)
class TargetOptions:
    """How a block is lowered: the scheme of its stage, and the backend ("" where there is one)."""

    scheme: str
    backend: str = ""


@dataclass(frozen=True)
class SharedMatrix:
    """Where a block's only matrix lies already: a tied head's rows in the embedding table.

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
        requires: Versions that a device must offer.
        weight_suffixes: Ends of the names of files that are mostly weights, beside the table.
        lower: Traced functions of one signature by name, a block of it, options -> what `write`
            takes for every block of the signature. Raises ExportError.
        write: That, the block, its weights by traced name, an existing folder, and where its only
            matrix lies already, or None -> the block's functions with their files, names relative
            to the folder. Raises ExportError.
        kv_form: Form of the KV cache, see `plan.KVCache`.
        kv_dtype: Its dtype.
        calibrated: Schemes that round by what pictures gave.
        refused: Schemes that do not pay, with what was measured.
        unpacked: Schemes whose weights are float32 again in memory.
        backends: Schemes of each backend, for targets with several; the first is the default.
        table_format: Scheme -> format of the embedding table, for `Embedding.dtype`.
        matrix_bytes: Rows, columns, scheme, stage -> bytes of a linear layer's matrix.
        number_bytes: Scheme -> bytes of any other weight.
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
    matrix_bytes: Callable[[int, int, str, str], int] = float32_matrix
    number_bytes: Callable[[str], int] = float32_number

    def weights_bytes(self, files: Iterable[FileEntry]) -> int:
        """Bytes of the files that are mostly weights, among those of a bundle."""
        ends = (*self.weight_suffixes, TABLE_FILE)
        return sum(file.bytes for file in files if file.path.endswith(ends))

    def backend(self, requested: str | None) -> str:
        """The backend that is asked for, else the first; "" where there is nothing to choose."""
        return requested or next(iter(self.backends), "")

    def schemes_of(self, backend: str) -> tuple[str, ...]:
        """The schemes that a backend takes."""
        return self.backends.get(backend, self.schemes)


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        RecipeError: If there is none; the message has the nearest name.
        RuntimeLoadError: If a library that it needs is missing; the message has the extra.
    """
    target: Target = TARGETS.load(name).TARGET
    return target
