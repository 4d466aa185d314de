"""The plan: a recipe in numbers, before any graph exists; with files, a bundle's manifest.

Importing this module needs neither torch nor transformers, so readers of bundles use these types
too. `edgevlm.planning` makes a plan from a recipe and a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from edgevlm.bundle.functions import Block
from edgevlm.bundle.host import Embedding
from edgevlm.recipe import Recipe
from edgevlm.registry import KINDS

FORMAT_VERSION = 8
MANIFEST = "manifest.json"


class Host(Protocol):
    """What every kind's host has."""

    @property
    def tables(self) -> Mapping[str, Embedding]:
        """The tables whose rows the host reads itself, by the name that `Block.shares` has."""

    def placed(self, files: Mapping[str, str]) -> Any:
        """The same host with the file of each table, by its name."""


H = TypeVar("H", bound=Host, covariant=True)


@dataclass(frozen=True)
class SiteTokens:
    """Tokens before and after the method at one site."""

    site: str
    method: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Source:
    """Where the weights came from; `config_hash` is the sha256 of config.json."""

    model: str
    revision: str | None
    family: str
    config_hash: str


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle with its identity."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Requires:
    """Requirements for a device: versions of a target's format, as the exporter states them."""

    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Plan(Generic[H]):
    """All the numbers of a bundle. With `files` it is the bundle's manifest.

    `host` has the type that `kind` names: `HOST` of edgevlm/bundle/kinds/<kind>.py.
    """

    format_version: int
    kind: str
    source: Source
    recipe: Recipe
    sites: tuple[SiteTokens, ...]
    host: H = field(metadata={"type": lambda plan: KINDS.load(plan["kind"]).HOST})
    blocks: tuple[Block, ...]
    requires: Requires = Requires()
    files: tuple[FileEntry, ...] = ()

    @property
    def passes(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """The orders in which a loop runs functions, by name: (block, function)."""
        orders: dict[str, tuple[tuple[str, str], ...]] = KINDS.load(self.kind).passes(self)
        return orders

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights; what a block shares with a table of the host counts once."""
        blocks = sum(block.weights_bytes for block in self.blocks if not block.shares)
        return blocks + sum(table.bytes for table in self.host.tables.values())

    def site(self, name: str) -> SiteTokens:
        """The counts of the method at a site."""
        return next(site for site in self.sites if site.site == name)

    def stage(self, name: str) -> tuple[Block, ...]:
        """Blocks of one stage, in order."""
        return tuple(block for block in self.blocks if block.stage == name)

    def block(self, name: str) -> Block:
        """The block called `name`."""
        return next(block for block in self.blocks if block.name == name)
