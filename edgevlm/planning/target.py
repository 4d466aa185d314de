"""The target of a recipe, refused early where it lacks what the recipe asks for."""

from __future__ import annotations

from edgevlm.bundle.host import Embedding, LayerTable
from edgevlm.bundle.kinds.shared.states import CacheSpec
from edgevlm.errors import PlanError, RecipeError
from edgevlm.exporters.contract import Target, find_target
from edgevlm.graphs.parts import DecoderSpec, ModelParts
from edgevlm.recipe import Recipe


def checked_target(recipe: Recipe, stages: tuple[str, ...]) -> Target:
    """The recipe's target, which has all its schemes.

    Args:
        recipe: What is asked for.
        stages: Stages with weights; each may have a scheme of its own.

    Raises:
        RecipeError: For an unknown target, a scheme that it has not, an unknown stage, or images
            to calibrate with where no scheme needs them, or none where one does.
    """
    target = find_target(recipe.target)
    for stage, scheme in (("", recipe.quantize.default), *recipe.quantize.stages):
        if stage not in ("", *stages):
            raise RecipeError(
                f"'{stage}' is not a stage with weights; available: {', '.join(stages)}"
            )
        _check_scheme(recipe, target, scheme)
    _check_calibration(recipe, target.calibrated)
    return target


def required_backend(recipe: Recipe, target: Target) -> tuple[tuple[str, str], ...]:
    """The backend as a requirement, for targets that have several; nothing for the others.

    Raises:
        RecipeError: If there is no such backend, or it does not take a scheme.
    """
    name = target.backend(recipe.backend)
    if name not in target.backends:
        if not name:
            return ()
        known = ", ".join(target.backends) or "none"
        raise RecipeError(f"target '{recipe.target}' has no backend '{name}'; available: {known}")
    for scheme in recipe.quantize.names:
        if scheme not in target.backends[name]:
            known = ", ".join(target.backends[name])
            raise RecipeError(
                f"backend '{name}' does not support scheme '{scheme}'; available: {known}"
            )
    return (("backend", name),)


def check_attention(recipe: Recipe, target: Target, decoder: DecoderSpec) -> None:
    """Refuse heads that the target's attention does not take, and layers of which none attends.

    Raises:
        PlanError: With the sizes that it takes, or that the model's own cache counts tokens by a
            layer that attends.
    """
    if not decoder.attending:
        raise PlanError(
            f"the language model's layers, {len(decoder.caches)}, are all recurrent, and its own"
            " cache, which parity compares with, counts tokens by one that attends; give more"
            " --layers"
        )
    sizes = {cache.head_size for cache in decoder.caches if isinstance(cache, CacheSpec)}
    for size in sorted(size for size in sizes if size % target.head_multiple):
        raise PlanError(
            f"heads of {size} numbers: the attention of target '{recipe.target}' takes multiples of"
            f" {target.head_multiple}; choose another --target"
        )


def table_format(recipe: Recipe, target: Target, tied: bool) -> str:
    """Format of a table that the host reads: `f32` or a packing of `bundle.packed`.

    Args:
        recipe: What is asked for.
        target: Its target.
        tied: Whether the head's matrix is the table, so that it has the head's scheme.
    """
    return target.table_format(recipe.scheme("head" if tied else "embed"))


def host_tables(
    recipe: Recipe, target: Target, parts: ModelParts, decoder: DecoderSpec
) -> tuple[Embedding, LayerTable | None]:
    """The embedding table, and the second one where there is one.

    Raises:
        RecipeError: If stage `embed` has a scheme that cannot apply.
    """
    further, matrix = decoder.per_layer, parts.layer_table
    tied = target.shares_table and parts.shared_rows > 0
    check_table_scheme(recipe, target, tied and matrix is None)
    embedding = Embedding(
        rows=sum(matrix.shape[0] for matrix in parts.table),
        columns=decoder.width,
        dtype=table_format(recipe, target, tied),
        scale=decoder.table_scale,
    )
    if further is None or matrix is None:
        return embedding, None
    own = table_format(recipe, target, tied=False)
    second = Embedding(len(matrix), matrix.shape[1], own, scale=further.scale)
    return embedding, LayerTable(second, further.visual_row)


def check_table_scheme(recipe: Recipe, target: Target, tied: bool) -> None:
    """Refuse a scheme of stage `embed` that cannot apply.

    Args:
        recipe: What is asked for.
        target: Its target.
        tied: Whether the one table of the host is the head's matrix.

    Raises:
        RecipeError: Saying why.
    """
    only_f32 = target.table_format(target.schemes[-1]) == "f32"
    if "embed" in dict(recipe.quantize.stages) and (tied or only_f32):
        raise RecipeError(
            "stage 'embed' cannot have its own scheme: "
            + ("its table is the head's" if tied else f"its table is f32 for '{recipe.target}'")
        )


def _check_scheme(recipe: Recipe, target: Target, scheme: str) -> None:
    if scheme in target.refused:
        raise RecipeError(f"scheme '{scheme}' is not offered: {target.refused[scheme]}")
    if scheme not in target.schemes:
        known = ", ".join(target.schemes)
        raise RecipeError(
            f"target '{recipe.target}' does not support scheme '{scheme}'; available: {known}"
        )


def _check_calibration(recipe: Recipe, calibrated: tuple[str, ...]) -> None:
    """Images are there if and only if a scheme rounds by them."""
    schemes = [scheme for scheme in recipe.quantize.names if scheme in calibrated]
    if schemes and recipe.calibrate is None:
        raise RecipeError(
            f"scheme '{schemes[0]}' needs calibration; add --calibrate N or --calibrate PATH"
        )
    if recipe.calibrate is not None and not schemes:
        known = ", ".join(calibrated) or "none here"
        raise RecipeError(f"nothing to calibrate in '{recipe.quantize}'; schemes with it: {known}")
