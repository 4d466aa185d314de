"""Which rooms a room may import from, at module level, type checking included.

A room imports from itself and from lower floors only, so the order of
`FLOORS` is the order in which the code can be read. docs/architecture.md says why.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("version", "errors"),
    ("libraries", "units"),
    ("options", "quantization.schemes", "registry"),
    ("recipe",),
    ("bundle",),
    ("runtimes", "graphs"),
    ("models", "compress", "exporters", "profiling"),
    ("planning",),
    ("evaluation",),
    ("quantization",),
    ("parity",),
    ("pipeline", "api"),
    ("devices", "studies", "serve"),
    ("cli",),
    ("_optimum", "__init__"),
)
RANK = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module below `edgevlm`, by its name without that."""
    found = {}
    for package in ("", "exporters", "runtimes", "devices"):
        folder = ROOT / (package or "edgevlm")
        for path in folder.rglob("*.py"):
            inside = path.relative_to(folder).with_suffix("").parts
            if not package and inside[0] in ("exporters", "runtimes", "devices"):
                continue
            parts = [*([package] if package else []), *inside]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
            found[name] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The longest name of a room that a module lies in."""
    parts = module.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((name for name in names if name in RANK), parts[0])


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports outside functions."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        waiting += ast.iter_child_nodes(node)
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            inside = name.removeprefix("edgevlm.")
            if name.startswith("edgevlm."):
                found.add(inside if inside in MODULES else inside.rpartition(".")[0] or "__init__")
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_from_its_room_and_from_below(module):
    own = room(module)
    assert own in RANK, f"tests/test_floors.py knows no floor for '{own}'"
    above = [
        name
        for name in imports(MODULES[module])
        if room(name) != own and RANK[room(name)] >= RANK[own]
    ]
    assert not above, f"{module} imports upward: {', '.join(sorted(above))}"


def test_no_module_imports_itself_through_others():
    links = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(links[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(links):
        visit(name, ())


def test_rooms_are_small():
    own = {path.name for path in (ROOT / "edgevlm").glob("*.py")} - {"__init__.py"}
    assert len(own) <= 9
    for name, path in MODULES.items():
        assert len(path.read_text("utf-8").splitlines()) <= 350, f"{name} is long: split it"


CATALOGUES = ("cli", "compress.tokens", "compress.decoder", "compress.vision", "models.vlm",
              "models.encoder", "bundle.kinds",
              "evaluation.datasets")  # fmt: skip


def test_no_package_of_the_flow_has_more_than_twelve_files():
    packages: dict[str, int] = {}
    for name, path in MODULES.items():
        if path.name != "__init__.py":
            packages[name.rpartition(".")[0]] = packages.get(name.rpartition(".")[0], 0) + 1
    crowded = {name: count for name, count in packages.items() if count > 12}
    assert not crowded.keys() - {*CATALOGUES}, crowded


@pytest.mark.parametrize("catalogue", CATALOGUES)
def test_no_file_of_a_catalogue_imports_a_sibling(catalogue):
    for name, path in MODULES.items():
        if name.rpartition(".")[0] == catalogue:
            siblings = {other for other in imports(path) if other.rpartition(".")[0] == catalogue}
            assert not siblings, f"{name} imports {siblings}"
