"""The command line: one file a command, human text to stderr, results to stdout.

Exit codes: 0 done, 1 an error in one line, 2 wrong usage.
"""

from __future__ import annotations

import importlib
import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgevlm.cli.shared import versions
from edgevlm.errors import EdgeVLMError

COMMANDS = (
    "export",
    "plan",
    "run",
    "verify",
    "profile",
    "evaluate",
    "compare",
    "inspect",
    "models",
    "methods",
    "targets",
    "engines",
    "devices",
)


class _OneLineErrors(TyperGroup):
    """A user's mistake is one line and exit 1; a defect of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output has gone: Click ends without a word
            raise
        except EdgeVLMError as error:
            message = str(error)
        except MemoryError:
            message = "there is not enough memory for this"
        except ModuleNotFoundError as error:
            library = str(error.name).partition(".")[0]
            if library == "edgevlm":
                raise
            message = f"this needs '{library}', which is not installed; pip install 'edgevlm[all]'"
        except KeyboardInterrupt:
            message = "stopped; nothing is half-written, the same command goes on where it can"
        except OSError as error:
            file = f": '{error.filename}'" if error.filename else ""
            message = f"{error.strerror or error}{file}"
        # One line, and no character that would steer a terminal: a name may come from a file.
        line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
        print("edgevlm:", line, file=sys.stderr)
        raise typer.Exit(1)


app = typer.Typer(
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain lines: boxes leave little of 80 columns, and markup eats [@SITE]
    help="Vision-language models on phones, Jetsons and laptops, with a fixed token budget.",
)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=versions.show,
            help="Print the versions of edgevlm and of the libraries it works with, and exit.",
        ),
    ] = False,
) -> None:
    """Options of no command in particular."""


for _name in COMMANDS:
    _module = importlib.import_module(f"edgevlm.cli.{_name}")
    app.command(_name)(_module.main)


def main() -> None:
    """Entry point of the `edgevlm` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may have letters that it cannot show
    app()
