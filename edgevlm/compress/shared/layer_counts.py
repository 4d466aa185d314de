"""How many tokens each layer sees, and the options that say so."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.errors import PlanError


def layer_counts(
    method: str, tokens: int, layers: int, at: tuple[int, ...], left: tuple[int, ...]
) -> tuple[int, ...]:
    """Visual tokens that each layer sees, when `left[i]` are left from layer `at[i]` on.

    Args:
        method: Its name, for messages.
        tokens: Visual tokens before the first layer: K.
        layers: Layers of the language model.
        at: Layers, counted from 0, ascending; the first layer sees all tokens.
        left: As many token counts, not ascending.

    Raises:
        PlanError: If counts or layers are missing, or tokens would have to come back.
    """
    if len(at) != len(left):
        raise PlanError(
            f"{method}: got tokens={'+'.join(map(str, left))} for layers={'+'.join(map(str, at))},"
            " expected a number of tokens for each layer; give both"
        )
    if not all(0 < a < layers for a in at) or sorted(set(at)) != list(at):
        raise PlanError(
            f"{method}: got layers {list(at)}, expected ascending numbers from 1 to {layers - 1}"
            " (the first layer sees all tokens)"
        )
    counts = [tokens] * layers
    for layer, count in zip(at, left, strict=True):
        if not 0 <= count <= counts[-1]:
            raise PlanError(
                f"{method}: got {count} tokens from layer {layer} on, expected 0 to {counts[-1]}"
            )
        counts[layer:] = [count] * (layers - layer)
    return tuple(counts)


def stages_of(layers: int, at: Sequence[int], of: int) -> dict[int, int]:
    """The layers where an original's stages are in a model of another depth.

    Args:
        layers: Layers of the language model.
        at: The original's, counted from 0, ascending,
        of: of so many.

    Returns:
        Layers, ascending and from 1 on, each with the number of its stage: where several stages
        fall on one layer, the last of them.
    """
    return {max(1, layers * layer // of): stage for stage, layer in enumerate(at)}


def parse_numbers(method: str, option: str, text: int | str) -> tuple[int, ...]:
    """`8+16+24` as numbers.

    Raises:
        ValueError: If the text has another form.
    """
    parts = str(text).split("+")
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{option} of {method} are numbers with '+' between them, got '{text}'")
    return tuple(int(part) for part in parts)
