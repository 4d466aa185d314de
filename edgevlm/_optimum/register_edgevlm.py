"""`optimum-cli export edgevlm`: our exporter as a command of Hugging Face's optimum.

optimum imports each file of the namespace package `optimum.commands.register` and adds what stands
in `REGISTER_COMMANDS`; pyproject.toml installs this folder under that name. The file is imported by
every `optimum-cli` command, so it imports optimum's base classes and nothing of ours until it runs.

Source: optimum 2.3, optimum/commands/optimum_cli.py, load_optimum_namespace_cli_commands.
Limits: the command has the options of a recipe; to run, profile or inspect a bundle use `edgevlm`.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

if TYPE_CHECKING:
    from edgevlm.recipe import Recipe


class EdgeVLMExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum has no types
    """Write a bundle for phones and laptops from a vision-language checkpoint."""

    COMMAND = CommandInfo(
        name="edgevlm", help="Export a vision-language model as a verified bundle of edgevlm."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options of a recipe; one that is not given keeps the recipe's default."""
        add = parser.add_argument
        add("-m", "--model", help="Hub id, folder, or `embedded` (default).")
        add("--revision", help="Commit or tag of a hub id.")
        add("--target", help="What to export to, such as `onnx` (default).")
        add("--tokens", type=int, help="Visual tokens kept per image or clip.")
        add(
            "--method",
            action="append",
            metavar="NAME[@SITE][:key=value,…]",
            help="Token reduction.",
        )
        add("--quantize", metavar="SCHEME", help="Quantization of the weights.")
        add("--calibrate", metavar="N|PATH", help="Pictures for static schemes.")
        add("--backend", metavar="NAME", help="Backend of the target.")
        add("--context", type=int, help="Cache length in tokens.")
        add("--frames", type=int, help="Frames of a clip.")
        add("--tiles", metavar="ROWSxCOLUMNS", help="Tile grid of an image.")
        add("--block-size", metavar="SIZE", help="Largest block of weights, such as 64MB.")
        add("--chunk", type=int, help="Tokens per prefill call.")
        add("--force", action="store_true", help="Replace a bundle that is there.")
        add("output", metavar="OUT", help="Bundle to write, by custom NAME.edgevlm.")

    def run(self) -> None:
        """Export; a mistake of the user is one line on stderr and exit status 1."""
        from edgevlm.errors import EdgeVLMError

        try:
            recipe = _recipe(self.args)
            from edgevlm.pipeline import export  # after the recipe: a typing mistake needs no torch

            done = export(recipe, self.args.output, self.args.force, _say)
        except EdgeVLMError as error:
            _say("edgevlm: " + " ".join(str(error).split()))
            sys.exit(1)
        print(done.bundle.path)


def _recipe(args: Namespace) -> Recipe:
    from edgevlm.recipe import Recipe, parse_bytes, parse_tiles

    same = (
        "model", "revision", "target", "tokens", "quantize", "calibrate", "context", "frames",
        "chunk", "backend",
    )  # fmt: skip
    given = {name: getattr(args, name) for name in same}
    given["methods"] = args.method and tuple(args.method)
    given["tiles"] = args.tiles and parse_tiles(args.tiles)
    given["block_size_bytes"] = args.block_size and parse_bytes(args.block_size)
    return Recipe(**{name: value for name, value in given.items() if value is not None})


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


REGISTER_COMMANDS = [(EdgeVLMExportCommand, ExportCommand)]
