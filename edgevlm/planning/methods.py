"""The methods of a recipe: one a site, with their options, and what they leave at it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args, get_type_hints

from edgevlm.bundle.host import ImageSpec
from edgevlm.bundle.plan import SiteTokens
from edgevlm.compress.shared.contract import (
    DecoderMethod,
    JoiningMethod,
    LeavingMethod,
    TokensMethod,
    VisionMethod,
)
from edgevlm.compress.shared.restore import Restored
from edgevlm.compress.shared.streams import Changed, OfFrame
from edgevlm.errors import PlanError, RecipeError
from edgevlm.graphs.parts import DecoderSpec, EncoderSpec
from edgevlm.graphs.pruning import Pruning
from edgevlm.graphs.signals import GLOBAL
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.planning.sites.vision import check_frames, check_mergeable, clip_groups
from edgevlm.recipe import MethodChoice, OptionValue, Recipe
from edgevlm.registry import METHODS
from edgevlm.runtimes.loops.images.picking import FramesMethod

# What the plan does with the tokens of any method of site `tokens`; the first is what happens
# unasked.
POLICIES = {
    "positions": ("contiguous", "original", "median"),
    "merge": ("none", "mean"),
    "calibrate": ("none", "size"),
}

OfVision = VisionMethod | LeavingMethod | JoiningMethod
ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def choose_method(
    recipe: Recipe, shape: VisualShape, decoder: DecoderSpec
) -> tuple[TokensMethod, SiteTokens, str]:
    """The method of site `tokens` with its counts, and the position policy.

    Without `--method`, `--tokens K` means `divprune`, of all methods within the interval of the
    best at few tokens (docs/methods.md) one that needs no signals; without either, `identity`.

    Raises:
        PlanError: If tokens should be numbered anew whose positions are places in a grid.
    """
    default = "identity" if recipe.tokens is None else "divprune"
    choice = _choices(recipe).get("tokens") or MethodChoice(default)
    options = dict(choice.options)
    policy = {name: str(options.pop(name, known[0])) for name, known in POLICIES.items()}
    if decoder.rope.axes > 1 and "positions" not in dict(choice.options):
        policy["positions"] = "original"
    for name, value in policy.items():
        if value not in POLICIES[name]:
            known = "' or '".join(POLICIES[name])
            raise RecipeError(f"{name} must be '{known}', got '{value}'")
    method: TokensMethod = _make(choice, "tokens", options, tuple(POLICIES), tokens=recipe.tokens)
    median = policy["positions"] == "median"
    merge, calibrate = policy["merge"] == "mean", policy["calibrate"] == "size"
    if merge or calibrate or median:
        method = Restored(method, merge, calibrate, median)
    positions = "contiguous" if policy["positions"] == "contiguous" else "original"
    if positions == "contiguous" and decoder.rope.axes > 1:
        raise PlanError(
            f"{choice.name} with positions=contiguous numbers tokens anew, and this model's have"
            f" {decoder.rope.axes} axes, places in a grid; leave it out"
        )
    return method, SiteTokens("tokens", choice.name, shape.tokens, method.plan(shape)), positions


def choose_stream(recipe: Recipe, description: Description) -> Changed | OfFrame | None:
    """What keeps the tokens of a frame of a stream; None where the recipe asks for no stream.

    It is the method of site `tokens` with its options, over one frame. Where the recipe names none,
    tokens are kept that differ from those of the frame before.

    Raises:
        PlanError: If the method needs the whole clip, or cannot keep as many.
    """
    if recipe.stream is None:
        return None
    grids = description.shape.grids
    frame = VisualShape(grids[:1], description.shape.channels)
    if set(grids) != {*frame.grids} or frame.tokens != description.view_tokens:
        raise PlanError("--stream needs frames that are grids of their own, and here they are not")
    choice = _choices(recipe).get("tokens")
    if choice is None:
        return Changed(recipe.stream, frame)
    options = dict(choice.options)
    policies = {name: options.pop(name) for name in POLICIES if name in options}
    beyond = next((f"{n}={v}" for n, v in policies.items() if n != "positions"), None)
    method: TokensMethod = _make(choice, "tokens", options, tuple(POLICIES), tokens=recipe.stream)
    if beyond:
        raise PlanError(f"{choice.name} with {beyond} does not go with --stream; leave it out")
    try:
        return OfFrame(method, recipe.stream, frame)
    except PlanError as cause:
        raise PlanError(f"{choice.name} does not go with --stream, one by one: {cause}") from cause


def choose_picker(recipe: Recipe, image: ImageSpec) -> ImageSpec:
    """Preprocessing with the method of site `input`, or as it is without one.

    Raises:
        PlanError: If the bundle takes still images.
        RecipeError: If it looks at fewer frames than it shows, or at too many.
    """
    choice = _choices(recipe).get("input")
    if choice is None:
        return image
    method: FramesMethod = _make(choice, "input", dict(choice.options))
    if image.frames == 1:
        raise PlanError(
            f"{choice.name} at site input picks frames of a video, and the bundle takes still"
            " images; add --frames F, or leave it out"
        )
    try:
        candidates = method.candidates(image.frames)
    except ValueError as cause:
        raise RecipeError(f"method '{choice.name}': {cause}") from cause
    if candidates == image.frames and not method.key_frames:
        return image  # all that are looked at are shown
    return replace(image, picker=choice.name.replace("-", "_"), candidates=candidates)


def choose_encoder_method(
    recipe: Recipe, encoder: EncoderSpec, frames: int = 0
) -> tuple[OfVision | None, tuple[int, ...], tuple[SiteTokens, ...]]:
    """The method of site `vision`, encoder tokens before the first layer and after each, counts.

    Without such a method: None and nothing.

    Args:
        recipe: What is asked for.
        encoder: Numbers of the encoder.
        frames: Frames of a clip whose embedding is the mean of theirs; 0 where it has none.

    Raises:
        PlanError: If tokens cannot merge between this encoder's layers.
    """
    choice = _choices(recipe).get("vision")
    if choice is None:
        return None, (), ()
    check_mergeable(choice.name, encoder)
    method: Any = _make(choice, "vision", dict(choice.options))
    if method.joins:
        check_frames(choice.name, encoder, frames)
        shapes = method.plan_frames(frames, encoder.patches, encoder.layers)
        counts = (frames * encoder.tokens, *(windows * tokens for windows, tokens in shapes))
        return method, counts, (SiteTokens("vision", choice.name, counts[0], counts[-1]),)
    if method.leaves:
        left = method.plan_clip(encoder.patches, encoder.layers, clip_groups(choice.name, encoder))
    else:
        left = method.plan(encoder.patches, encoder.layers)
    patches = (encoder.patches, *left)
    counts = tuple(count + encoder.class_token for count in patches)
    return method, counts, (SiteTokens("vision", choice.name, patches[0], patches[-1]),)


def choose_decoder_method(
    recipe: Recipe, decoder: DecoderSpec, tokens: int
) -> tuple[Pruning | None, tuple[SiteTokens, ...]]:
    """The method of site `decoder` with its counts; None and nothing without one.

    Raises:
        PlanError: If it numbers tokens anew whose positions are places in a grid.
    """
    choice = _choices(recipe).get("decoder")
    if choice is None:
        return None, ()
    method: DecoderMethod = _make(choice, "decoder", dict(choice.options))
    if method.contiguous and decoder.rope.axes > 1:
        raise PlanError(
            f"{choice.name} at site decoder numbers the tokens that stay anew, and this model's"
            f" positions have {decoder.rope.axes} axes, places in a grid; take another method"
        )
    counts = method.plan(tokens, len(decoder.caches))
    whole = method.plan_whole(tokens, len(decoder.caches))
    pruning = Pruning(method, counts, tokens, decoder.ropes[0].inverse_frequencies, whole)
    return pruning, (SiteTokens("decoder", choice.name, tokens, counts[-1]),)


def check_recurrent(
    recipe: Recipe, tokens: Any, pruning: Pruning | None, decoder: DecoderSpec
) -> None:
    """Refuse what a language model with recurrent layers does not go with.

    Args:
        recipe: What is asked for.
        tokens: Method of site `tokens`.
        pruning: Numbers of the method of site `decoder`, or None.
        decoder: Numbers of the language model.

    Raises:
        PlanError: Naming what to leave out, or to change.
    """
    if not decoder.recurrent:
        return
    if recipe.speculate:
        raise PlanError(
            "--speculate checks several tokens in one call and takes back the wrong ones, and what"
            " a token does to the recurrent layers of this model cannot be taken back; leave it out"
        )
    if getattr(tokens, "calibrate", False):
        raise PlanError(
            "calibrate=size weighs tokens in attention, and this model has layers without, which"
            " are recurrent; leave it out"
        )
    if pruning:
        _check_choosing(pruning, decoder)


def global_times(tokens: Any, pruning: Pruning | None) -> list[float]:
    """`global_times` of the methods that ask for global tokens."""
    methods = [tokens, *([pruning.method] if pruning else [])]
    return [method.global_times for method in methods if GLOBAL in method.signals]


def check_pruning(recipe: Recipe, chosen: Any, pruning: Pruning, name: str) -> None:
    """Refuse what does not go with tokens that leave between the layers of the decoder.

    Args:
        recipe: What is asked for.
        chosen: The `planning.vlm.ChosenMethods`.
        pruning: Numbers of the method of site `decoder`.
        name: Its name.

    Raises:
        PlanError: Naming what to leave out, or to change.
    """
    if chosen.levels:
        raise PlanError(
            f"{name} at site decoder takes tokens out between layers, and this model adds features"
            f" of {len(chosen.levels)} further levels of its encoder there; take a method of site"
            " tokens"
        )
    times = global_times(chosen.tokens, pruning)
    if len(set(times)) > 1:
        raise PlanError(
            f"{name}: got t={times[0]:g} at site tokens and t={times[1]:g} at site decoder,"
            " expected one; give both the same"
        )
    if getattr(chosen.tokens, "calibrate", False):
        raise PlanError(f"{name} at site decoder makes its own masks; leave out calibrate=size")
    if pruning.method.contiguous and chosen.positions == "original":
        raise PlanError(f"{name} renumbers positions; leave out positions=original")
    if recipe.speculate:
        raise PlanError(
            f"{name} at site decoder takes single rows after the prompt; leave out --speculate"
        )


def _check_choosing(pruning: Pruning, decoder: DecoderSpec) -> None:
    """Refuse a choice by the attention of a recurrent layer, counted as in the method's options.

    Raises:
        PlanError: With the layers that can be given.
    """
    after = int(pruning.method.after)  # a layer after the one by which tokens are chosen
    layer = next((at + after for at in pruning.choosing if at not in decoder.attending), None)
    if layer is None:
        return
    known = [at + after for at in decoder.attending if 0 < at + after < len(decoder.caches)]
    others = f"give layer {', '.join(map(str, known))} where the method has an option for it, or "
    raise PlanError(
        f"a method of site decoder lets tokens leave from layer {layer} on by the attention of"
        f" {'the layer before' if after else 'that layer'}, which is recurrent and has none;"
        f" {others * bool(known)}take a method of site tokens"
    )


def check_types(where: str, function: Any, options: Mapping[str, OptionValue]) -> None:
    """Refuse options that are not of the types of a function's keywords; a whole number is a float.

    Raises:
        RecipeError: Naming the option.
    """
    hints = get_type_hints(function)
    for name, value in options.items():
        kinds = get_args(hints[name]) or (hints[name],)
        if str in kinds or isinstance(value, int) or (float in kinds and isinstance(value, float)):
            continue
        wanted = "a number" if float in kinds else "a whole number"
        raise RecipeError(f"{where}: got {name}={value}, expected {wanted}")


def _choices(recipe: Recipe) -> dict[str, MethodChoice]:
    """The recipe's methods by site; one a site."""
    by_site: dict[str, MethodChoice] = {}
    for choice in recipe.methods:
        site = METHODS.site_of(choice.name, choice.site)
        if site in by_site:
            names = f"'{by_site[site].name}' and '{choice.name}'"
            raise RecipeError(f"site '{site}' has two methods: {names}; drop one")
        by_site[site] = choice
    return by_site


def _make(
    choice: MethodChoice,
    site: str,
    options: dict[str, OptionValue],
    further: tuple[str, ...] = (),
    **fixed: Any,
) -> Any:
    """The method with its options; `further` are those that the plan itself takes."""
    module = METHODS.load(choice.name, site)
    kind, takes = module.Method, inspect.signature(module.Method).parameters
    # Without an `__init__` of its own a class shows that of a protocol, which takes anything.
    known = [n for n, p in takes.items() if n not in fixed and p.kind not in ANY_NUMBER]
    if "" in options and known:  # a value without a name is the first option's
        options = {known[0]: options.pop(""), **options}
    for name in options:
        if name not in known:
            available = ", ".join([*known, *further]) or "none"
            raise RecipeError(
                f"method '{choice.name}' has no option '{name}'; available: {available}"
            )
    for name in known:
        if takes[name].default is inspect.Parameter.empty and name not in options:
            measured = f"; `edgevlm calibrate {choice.name}` finds it on pictures"
            raise RecipeError(
                f"method '{choice.name}' needs the option '{name}', as in"
                f" {choice.name}@{site}:{name}=…" + measured * hasattr(module, "calibrate")
            )
    check_types(f"method '{choice.name}'", kind.__init__, options)
    try:
        return kind(**fixed, **options)
    except (TypeError, ValueError) as cause:
        raise RecipeError(f"method '{choice.name}': {cause}") from cause
