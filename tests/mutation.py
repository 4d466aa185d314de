"""Change one line, run the tests of its module, and see whether they notice.

    python tests/mutation.py [--seed 0] [--count 20] TREE MAP [TREE MAP …]

MAP is a TOML table: a name, the module, and the test paths that belong to it (tests/mutation.toml).
Mutations are drawn with a seed from lines that those tests run, the modules in turn. With several
trees (a checkout before a change of the tests, and one after) only lines that stand in all of them
are drawn, and each mutation is tried in each: a column a tree, one JSON line a mutation.

Each tree is copied, and the copy's module is written anew for every trial: `caught` (a test
failed), `hangs` (no end within `--timeout`), or `survived`, which is a missing test or a change
that nothing can notice. Tests that fail without a mutation end the command.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "in": "not in",
    "not in": "in", "is": "is not", "is not": "is", "and": "or", "or": "and",
    "+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "+",
}  # fmt: skip
# A pytest plug-in that writes the lines of one file that ran, and leaves other files alone.
LINES = """
import atexit, functools, json, os, sys, threading
FILE, OUT, ran = os.environ["MUTATION_FILE"], os.environ["MUTATION_LINES"], set()
real = functools.cache(os.path.realpath)  # folders of plug-ins are links
def line(frame, event, argument):
    ran.add(frame.f_lineno)
    return line
def call(frame, event, argument):
    return line(frame, event, argument) if real(frame.f_code.co_filename) == FILE else None
sys.settrace(call)
threading.settrace(call)
atexit.register(lambda: open(OUT, "w").write(json.dumps(sorted(ran))))
"""


@dataclass(frozen=True)
class Mutation:
    """A line of a module, as it is and as it becomes, both without their indentation."""

    name: str
    line: str
    mutated: str


class Tree:
    """A copy of a checkout, with its map."""

    def __init__(self, tree: Path, table: Path, copy: Path, timeout: float) -> None:
        self.root, self.timeout = copy / tree.name, timeout
        kept = shutil.ignore_patterns(".git", "__pycache__", ".*_cache")
        shutil.copytree(tree, self.root, symlinks=True, ignore=kept)
        if (tree.parent / "shared").is_dir():  # recorded vectors lie beside a checkout
            (copy / "shared").symlink_to(tree.parent / "shared")
        (self.root / "mutation_lines.py").write_text(LINES)
        self.table = tomllib.loads(table.read_text("utf-8"))

    def mutations(self, name: str) -> dict[Mutation, int]:
        """What can be changed on lines that the tests of a module run, and the lines' numbers."""
        path, out = self._path(name), self.root / "lines.json"
        asked = {"MUTATION_FILE": str(path), "MUTATION_LINES": str(out)}
        found = self._pytest(name, "-p", "mutation_lines", **asked)
        if found != "survived":
            sys.exit(f"{self.root.name}: the tests of {name} fail without a mutation")
        ran, text = set(json.loads(out.read_text())), path.read_text("utf-8")
        lines = [line.strip() for line in text.splitlines()]
        once = Counter(lines)  # a line is known in another tree by its text
        return {
            Mutation(name, lines[number - 1], changed): number
            for number, changed in changes(text)
            if number in ran and once[lines[number - 1]] == 1
        }

    def trial(self, mutation: Mutation) -> str:
        """What the tests say of a mutation: `caught`, `hangs` or `survived`."""
        path = self._path(mutation.name)
        before = path.read_text("utf-8")
        lines = before.splitlines(keepends=True)
        index = [line.strip() for line in lines].index(mutation.line)
        lines[index] = lines[index].replace(mutation.line, mutation.mutated)
        path.write_text("".join(lines), "utf-8")
        try:
            return self._pytest(mutation.name, "-x")
        finally:
            path.write_text(before, "utf-8")

    def _path(self, name: str) -> Path:
        return (self.root / self.table[name][0]).resolve()

    def _pytest(self, name: str, *options: str, **settings: str) -> str:
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider"]
        environment = os.environ | settings | {"PYTHONPATH": str(self.root)}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # one second's files look alike to its cache
        try:
            code = subprocess.run(
                [*command, *options, *self.table[name][1:]], cwd=self.root,
                env=environment, capture_output=True, timeout=self.timeout, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return "hangs"
        return "caught" if code else "survived"


def changes(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers with the stripped line after one change; only nodes that stand on one line."""
    tree, lines = ast.parse(text), text.splitlines()
    for node in _nodes(tree):
        if getattr(node, "lineno", None) != getattr(node, "end_lineno", 0):
            continue
        line = lines[node.lineno - 1].encode()
        for start, end, by in _replacements(node, line):
            yield node.lineno, (line[:start] + by + line[end:]).decode().strip()


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Depth first, without annotations and without what stands inside f-strings."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or isinstance(node, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _nodes(child)


def _replacements(node: ast.AST, line: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Byte ranges of the line, and what to put there."""
    pairs = []
    match node:
        case ast.Constant(value=bool()):
            yield node.col_offset, node.end_col_offset, str(not node.value).encode()
        case ast.Constant(value=int()):
            yield node.col_offset, node.end_col_offset, str(node.value + 1).encode()
            yield node.col_offset, node.end_col_offset, str(node.value - 1).encode()
        case ast.UnaryOp(op=ast.Not()):
            yield node.col_offset, node.operand.col_offset, b""
        case ast.Return(value=ast.expr()) if ast.unparse(node.value) != "None":
            yield node.value.col_offset, node.value.end_col_offset, b"None"
        case ast.Compare():
            pairs = list(zip([node.left, *node.comparators], node.comparators, strict=False))
        case ast.BoolOp():
            pairs = list(zip(node.values, node.values[1:], strict=False))
        case ast.BinOp():
            pairs = [(node.left, node.right)]
    for left, right in pairs:
        between = line[left.end_col_offset : right.col_offset].decode()
        found = re.search(r"(?<![\w(])(not in|is not|in|is|and|or|[<>=!]=|//|[<>+\-*/%])", between)
        if found and found[1] in SWAPS and "**" not in between:
            first = left.end_col_offset
            yield first + found.start(1), first + found.end(1), SWAPS[found[1]].encode()


def main() -> None:
    """Draw, try, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", nargs="+", type=Path, metavar="TREE MAP")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=900, help="seconds a trial")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = list(zip(asked.trees[::2], asked.trees[1::2], strict=True))
        trees = [
            Tree(tree.resolve(), table, Path(folder) / str(number), asked.timeout)
            for number, (tree, table) in enumerate(pairs)
        ]
        draw, seen, queues = random.Random(asked.seed), Counter(), []
        for name in trees[0].table:  # lines that stand in all trees, and that all tests run
            found = [tree.mutations(name) for tree in trees]
            common = sorted(set(found[0]).intersection(*found[1:]), key=found[0].__getitem__)
            queues.append(draw.sample(common, len(common)))
        drawn = [m for turn in zip_longest(*queues) for m in turn if m]
        for mutation in drawn[: asked.count]:
            verdicts = [tree.trial(mutation) for tree in trees]
            seen[" ".join(verdicts)] += 1
            print(json.dumps(vars(mutation) | {"verdicts": verdicts}), flush=True)
        print(json.dumps(dict(seen)))


if __name__ == "__main__":
    main()
