"""The command line: one file a command, found here by name; human text to stderr, results to stdout.

Exit codes: 0 done, 1 an error in one line, 2 wrong usage.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from edgevlm.errors import EdgeVLMError

COMMANDS = (
    "export", "plan", "run", "verify", "inspect", "models", "methods", "targets", "engines",
)


class _OneLineErrors(TyperGroup):
    """A user's mistake is one line and exit 1; a defect of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeVLMError as error:
            message = str(error)
        except KeyboardInterrupt:
            message = "stopped; nothing is half-written, the same command goes on where it can"
        except OSError as error:
            message = f"{error.strerror or error}: '{error.filename}'" if error.filename else str(error)
        print("edgevlm:", " ".join(message.split()), file=sys.stderr)
        raise typer.Exit(1)


app = typer.Typer(
    cls=_OneLineErrors, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Vision-language models on phones, Jetsons and laptops, with a fixed token budget.",
)
for _name in COMMANDS:
    _module = importlib.import_module(f"edgevlm.cli.{_name}")
    app.command(_name)(_module.main)


def main() -> None:
    """Entry point of the `edgevlm` command."""
    app()
