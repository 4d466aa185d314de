"""The command line: one file a command, human text to stderr, results to stdout.

Exit codes: 0 done, 1 an error in one line, 2 wrong usage.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgevlm.cli.shared import versions
from edgevlm.cli.shared.output import complain, printable
from edgevlm.errors import EdgeVLMError, shortened
from edgevlm.libraries import process_alone

COMMANDS = (
    "export",
    "plan",
    "run",
    "serve",
    "verify",
    "profile",
    "evaluate",
    "calibrate",
    "compare",
    "inspect",
    "models",
    "methods",
    "rules",
    "targets",
    "engines",
    "devices",
    "cache",
)


_USAGE_ERROR: Any = typer.BadParameter.__base__  # Typer brings Click, or a copy of it


class _OneLineErrors(TyperGroup):
    """Errors for the user are one line and exit code 1; a defect keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _USAGE_ERROR as error:  # it may repeat an argument of any length
            error.message = shortened(printable(error.message))
            raise
        except BrokenPipeError:  # the reader of stdout is gone: Click exits silently
            raise
        except EdgeVLMError as error:
            message = str(error)
        except MemoryError:
            message = "there is not enough memory for this"
        except ModuleNotFoundError as error:
            library = str(error.name).partition(".")[0]
            if library == "edgevlm":
                raise
            message = f"'{library}' is not installed; pip install 'edgevlm[all]'"
        except KeyboardInterrupt:
            message = (
                "stopped; no output is incomplete, and the same command continues where it can"
            )
        except OSError as error:
            file = f": '{error.filename}'" if error.filename else ""
            message = f"{error.strerror or error}{file}"
        complain(message)
        raise typer.Exit(1)


app = typer.Typer(
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain lines: boxes narrow the text, and markup would drop [@SITE]
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
            help="Print the versions of edgevlm and its libraries, and exit.",
        ),
    ] = False,
) -> None:
    """Options of `edgevlm` without a command."""


for _name in COMMANDS:
    _module = importlib.import_module(f"edgevlm.cli.{_name}")
    app.command(_name)(_module.main)


def _open_streams() -> None:
    """Point closed standard streams at nothing.

    Else the next file that is opened would be number 2, where libraries write their messages; and
    `print` to a standard error that is None prints on standard output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            file = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  (for the whole process)
            setattr(sys, name, file)


def main() -> None:
    """Entry point of the `edgevlm` command."""
    _open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # an answer may have letters that the terminal's encoding lacks
    try:
        with process_alone():
            app()
    finally:
        gc.freeze()  # else Python walks all objects of torch once more, for a second
