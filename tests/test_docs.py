"""README and docs name files, links, commands and options that exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer

from edgevlm.cli import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "edgevlm/embedded/README.md")
FOLDERS = "edgevlm|exporters|runtimes|devices|tests|samples|docs"
SUFFIXES = "py|md|toml|jinja"
# From the top of the repository; `.../edgevlm/…` is a folder of a device, `~/…` one of a user.
IN_TREE = re.compile(rf"(?<![\w./~-])(?:{FOLDERS})/[\w./-]*")
# With a slash and the ending of a source file: it must be in the tree too.
OF_OURS = re.compile(rf"(?<![\w./~-])[\w-]+(?:/[\w.-]+)+\.(?:{SUFFIXES})\b")
COMING = re.compile(r"(?<![\w*])\*([\w.-]+/[\w./-]*)\*(?!\*)")  # in italics: not there yet
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+")  # stands for any name: `to_NAME`
EXAMPLES = ("edgevlm/compress/tokens/longest.py", "edgevlm/models/vlm/deepseek_vl.py",
            "docs/ContribOperators.md")  # written by a reader  # fmt: skip
COMMANDS = typer.main.get_command(app).commands
OPTIONS = {name: {flag for p in c.params for flag in (*p.opts, *p.secondary_opts)}
           for name, c in COMMANDS.items()}  # fmt: skip

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text(page: Path) -> str:
    return page.read_text("utf-8")


def code_spans(page: Path) -> list[str]:
    """Inline code, and lines of code blocks, fenced or indented."""
    content = text(page)
    blocks = re.findall(r"^```\w*\n(.*?)^```", content, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```\w*\n.*?^```", "", content, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line.strip() for line in prose.splitlines() if line.startswith("    ")]
    return lines + [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose)]


def exists(path: str) -> bool:
    if (ROOT / path).exists():
        return True
    pattern = PLACEHOLDER.sub("*", path.rstrip("/"))
    return pattern != path.rstrip("/") and any(ROOT.glob(pattern))


def paths(content: str) -> set[str]:
    """Paths in the tree that a text names, without a full stop at the end of a sentence."""
    content = COMING.sub("", re.sub(r"\w+://\S+", "", content))
    found = {*IN_TREE.findall(content), *OF_OURS.findall(content)}
    return {path.rstrip(".") for path in found} - {*EXAMPLES}


def anchors(page: Path) -> set[str]:
    """What a link may name after `#`: headings as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pages
def test_every_path_exists(page):
    content = text(page)
    if page.name == "methods.md":  # its sources are files of other projects
        content = re.sub(r"^- (Source|Differs): .*$", "", content, flags=re.MULTILINE)
    missing = sorted(path for path in paths(content) if not exists(path))
    assert not missing
    assert not [path for path in COMING.findall(content) if exists(path)], "it is there now"


def test_a_path_that_is_gone_is_seen():
    assert paths("see `edgevlm/gone.py`, ~/.cache/edgevlm/x and runs/ID.") == {"edgevlm/gone.py"}
    assert paths("`bundle/kinds/vlm.py`") == {"bundle/kinds/vlm.py"}
    assert not exists("edgevlm/gone.py")
    assert not exists("exporters/to_NAME/gone.py")
    assert exists("exporters/to_NAME/target.py")


@pages
def test_every_link_resolves(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), f"{target}: known {sorted(anchors(linked))}"


def test_readme_fits_into_200_lines():
    assert len(text(README).splitlines()) <= 200


def commands(page: Path) -> list[list[str]]:
    """Command lines of edgevlm: the words after its name."""
    found = []
    for span in code_spans(page):
        for part in span.split("#")[0].split("&&"):
            match = re.match(r"\s*(?:\$ )?(?:\.venv/bin/)?edgevlm (\S.*)", part)
            if match:
                found.append(shlex.split(match[1]))
    return found


@pages
def test_every_command_and_its_options_exist(page):
    for name, *rest in commands(page):
        if name == "--version" or PLACEHOLDER.fullmatch(name):
            continue
        assert name in COMMANDS, f"edgevlm {name}"
        flags = [word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
        unknown = [flag for flag in flags if flag not in OPTIONS[name]]
        assert not unknown, f"edgevlm {name}: {unknown}"


@pages
def test_every_option_exists_somewhere(page):
    """An option that stands alone is one of a command, or of a script that is in the tree."""
    others = {"--es", "--run"}  # of Android's `am`, of an app
    scripts = [*ROOT.glob("tests/benchmarks/*.py"), *ROOT.glob("samples/**/*.py")]
    known = set().union(*OPTIONS.values(), {"--version", "--help"}, others)
    known |= {flag for s in scripts for flag in re.findall(r'"(--[a-z-]+)"', s.read_text("utf-8"))}
    flags = {
        flag for span in code_spans(page) for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", span)
    }
    assert not flags - known


def test_commands_are_found():
    names = {name for name, *_ in commands(README)}
    assert {"run", "export", "plan", "verify", "inspect", "evaluate", "profile"} <= names


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "index.md"
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", text(index)))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}


def test_the_floors_are_those_of_the_test():
    """The table of docs/architecture.md, row by row."""
    tree = ast.parse((ROOT / "tests/test_floors.py").read_text("utf-8"))
    (floors,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS"
    ]
    rows = re.findall(r"^\| \d+ \| (.*?) \|", text(ROOT / "docs/architecture.md"), re.MULTILINE)
    named = [re.findall(r"`(?:edgevlm/)?([\w/]+?)(?:\.py|/)`", row) for row in rows]
    assert [{name.replace("/", ".") for name in row} for row in named] == [{*f} for f in floors]
