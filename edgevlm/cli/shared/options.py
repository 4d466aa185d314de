"""Options that several commands share, each declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from edgevlm.options import Option, options
from edgevlm.recipe import Recipe

BundleArgument = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="Bundle written by `edgevlm export`.")
]
Engine = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Engine; default: the best one here. `edgevlm engines` lists them."
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads; default: all cores.")
]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory budget of the process, such as 300MB."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document as the last line of stdout.")
]


def takes_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `recipe` of a command by the options of a recipe."""

    def call(**values: Any) -> None:
        fields = {each.name: values.pop(each.name) for each in options(Recipe)}
        recipe = Recipe(**{name: v for name, v in fields.items() if v is not None})
        command(recipe=recipe, **values)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == "recipe":
            parameters += map(_parameter, options(Recipe))
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    call.__doc__, call.__module__ = command.__doc__, command.__module__
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _parameter(option: Option) -> inspect.Parameter:
    """The parameter from which Typer makes an option or an argument."""
    kind: Any = int if option.number else str
    kind = list[kind] if option.repeated else kind
    declared: Any = typer.Argument(metavar=option.metavar, help=option.help)
    if option.flag:
        declared = typer.Option(option.flag, metavar=option.metavar, help=option.help)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=option.default,
        annotation=Annotated[kind | None if option.default is None else kind, declared],
    )


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the user gave an option, rather than its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
