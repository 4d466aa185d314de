"""`optimum-cli export edgevlm`: our exporter as a command of Hugging Face's optimum.

optimum imports each file of the namespace package `optimum.commands.register` and adds what stands
in `REGISTER_COMMANDS`; pyproject.toml installs this folder under that name. Every `optimum-cli`
command imports this file and asks it for its options, so of ours it imports the recipe alone until
it runs.

Source: optimum 2.3, optimum/commands/optimum_cli.py, load_optimum_namespace_cli_commands.
Limits: the command has the options of a recipe; to run, profile or inspect a bundle use `edgevlm`.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from edgevlm.options import Option, options
from edgevlm.recipe import Recipe


class EdgeVLMExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum has no types
    """Write a bundle for phones and laptops from a vision-language checkpoint."""

    COMMAND = CommandInfo(
        name="edgevlm", help="Export a vision-language model as a verified bundle of edgevlm."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options of a recipe; one that is not given keeps the recipe's default."""
        for option in options(Recipe):
            _add(parser, option)
        parser.add_argument("--force", action="store_true", help="Replace what is already there.")
        parser.add_argument("output", metavar="OUT", help="Bundle to write, usually NAME.edgevlm.")

    def run(self) -> None:
        """Export; a mistake of the user is one line on stderr and exit status 1."""
        from edgevlm.errors import EdgeVLMError

        try:
            named = {each.name: getattr(self.args, each.name) for each in options(Recipe)}
            recipe = Recipe(**{name: v for name, v in named.items() if v is not None})
            from edgevlm.pipeline import export  # after the recipe: a typing mistake needs no torch

            done = export(recipe, self.args.output, self.args.force, _say)
        except EdgeVLMError as error:
            _say("edgevlm: " + " ".join(str(error).split()))
            sys.exit(1)
        print(done.bundle.path)


def _add(parser: ArgumentParser, option: Option) -> None:
    """Add an option; what `edgevlm` takes as an argument is `--model` and `-m` here, as usual."""
    flags = [option.flag] if option.flag else [f"-{option.name[0]}", f"--{option.name}"]
    default = "" if option.default is None else f" [default: {option.default}]"
    further: dict[str, Any] = {"action": "append"} if option.repeated else {}
    parser.add_argument(
        *flags,
        dest=option.name,
        type=int if option.number else str,
        metavar=option.metavar,
        help=(option.help + default).replace("%", "%%"),
        **further,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


REGISTER_COMMANDS = [(EdgeVLMExportCommand, ExportCommand)]
