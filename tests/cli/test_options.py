"""Options are declared once: with the field of a recipe, or in one place of the command line."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgevlm.cli import COMMANDS
from edgevlm.options import options
from edgevlm.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
LAST_FIELD = "    def __post_init__(self) -> None:"
NEW_FIELD = """    rank: int = field(
        default=7, metadata=option("Rank of an adapter, a number of tests.", "RANK", least=1)
    )

"""
NEW_LINE = "--rank RANK Rank of an adapter, a number of tests. [default: 7]"
LINES = 14  # of a command's body: parse, call, print


@pytest.fixture(scope="module")
def tree_with_one_more_field(copied_tree, tmp_path_factory):
    tree = copied_tree(tmp_path_factory.mktemp("tree"), "embedded", "material", "photos")
    path = tree / "edgevlm" / "recipe.py"
    text = path.read_text("utf-8")
    assert text.count(LAST_FIELD) == 1
    path.write_text(text.replace(LAST_FIELD, NEW_FIELD + LAST_FIELD), "utf-8")
    return tree


@pytest.mark.parametrize("name", ["export", "plan"])
def test_a_new_option_of_a_recipe_is_one_field(tree_with_one_more_field, name):
    code = "from edgevlm.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, name, "--help"], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tree_with_one_more_field), "COLUMNS": "80"},
        cwd=tree_with_one_more_field,
    )  # fmt: skip
    assert NEW_LINE in " ".join(done.stdout.split()), done.stderr


def test_a_new_option_is_one_of_optimum_cli_too(tree_with_one_more_field, optimum_cli):
    pytest.importorskip("optimum.commands.optimum_cli")
    done = optimum_cli(tree_with_one_more_field, "export", "edgevlm", "--help")
    assert NEW_LINE in " ".join(done.stdout.split()), done.stderr


@pytest.mark.parametrize("command", ["export", "plan"])
def test_every_field_of_a_recipe_is_an_option(run, command):
    text = " ".join(run(command, "--help").stdout.split())
    for option in options(Recipe):
        assert f"{option.flag} {option.metavar} ".lstrip() in text
        shown = "" if option.default is None else f" [default: {option.default}]"
        assert option.help + shown in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns_and_says_defaults_once(run, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    text = run(name, "--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "--no-" not in text
    assert "…[" not in text
    defaults = re.findall(r"\[default: ([^;\]]+)", " ".join(text.split()))
    said = re.findall(r"\((?:the )?default[):]|by default", text)
    assert not said, f"{name} says a default in a help text besides {defaults}"


@pytest.mark.parametrize("flag", ["--no-force", "--no-dry-run", "--no-json"])
def test_flags_have_no_twins(run, flag):
    done = run("export", flag)
    assert done.exit_code == 2
    assert f"No such option: {flag}" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_parses_calls_and_prints(name):
    tree = ast.parse((ROOT / "edgevlm" / "cli" / f"{name}.py").read_text("utf-8"))
    (main,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main")
    assert ast.get_docstring(main)
    first, last = main.body[1], main.body[-1]
    assert last.end_lineno - first.lineno + 1 <= LINES


def test_the_device_of_a_plan_gives_the_target_that_is_not_named(run, monkeypatch):
    from edgevlm.cli import plan

    asked = []
    monkeypatch.setattr(plan, "plan_with_cost", lambda recipe: (asked.append(recipe), None, ()))
    monkeypatch.setattr(plan.plan_text, "show", lambda *_: None)
    for named in ([], ["--target", "onnx"]):
        assert run("plan", "--for", "iphone-15-pro", *named).exit_code == 0
    assert run("plan").exit_code == 0
    assert [recipe.target for recipe in asked] == ["coreml", "onnx", "onnx"]
