"""Accuracy and time to first token over methods and token budgets, as a table and a chart.

    model, methods, budgets -> a bundle for each pair -> evaluate -> rows -> PREFIX.csv, PREFIX.png

A bundle's folder is named by its recipe and the checkpoint's contents, so that the same sweep on
another day, or on another dataset, exports nothing again. `random` and `average_pool` are
always among the methods, and `identity`, which keeps all tokens, is the first row. A budget that a
method does not support stays in the table with the reason.

A budget of a method of site `decoder` is what is left from its layer on, while the layers before it
have all tokens. A method that leaves tokens in stages has one row, with its own stages, and the
budget that its last one leaves.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import edgevlm
from edgevlm.bundle.cache import alone, cache_folder, sha256
from edgevlm.bundle.documents import dumps
from edgevlm.bundle.files import is_sound
from edgevlm.errors import EdgeVLMError, RecipeError
from edgevlm.evaluation.answerers import BundleAnswerer
from edgevlm.evaluation.evaluate import Dataset, Evaluation, evaluate
from edgevlm.evaluation.scores import Score
from edgevlm.libraries import require_torch
from edgevlm.recipe import MOST_TOKENS, MethodChoice, Recipe
from edgevlm.registry import METHODS

if TYPE_CHECKING:  # it comes with torch
    from edgevlm.pipeline import Graphs
    from edgevlm.planning.vlm import VlmPlanned

ALL = "all"
UNREDUCED = "identity"
BASELINES = ("average_pool", "random")
SITE, DECODER = "tokens", "decoder"
COLUMNS = (
    "method", "tokens", "kind", "name", "accuracy", "low", "high", "n",
    "ttft_median_ms", "ttft_p90_ms", "bundle_bytes", "reason",
)  # fmt: skip

Say = Callable[[str], None]


@dataclass(frozen=True)
class SweepRow:
    """One method at one budget: an evaluation, or the reason why there is none."""

    method: str
    tokens: int
    evaluation: Evaluation | None
    reason: str | None = None


@dataclass(frozen=True)
class SweepRequest:
    """What to sweep.

    Attributes:
        model: Hub id, folder, or `embedded`.
        dataset: Its questions are asked.
        budgets: Visual tokens.
        methods: NAME, or NAME@decoder.
        frames: Frames of a clip; 1 is images.
        limit: Most scenes; None takes all.
        engine: Name of the engine; None takes the first that runs the target.
        threads: Threads of the engine; None takes all cores.
        seed: Seed of the intervals.
        keep: Folder for the bundles; None is the user's cache.
    """

    model: str
    dataset: Dataset
    budgets: tuple[int, ...]
    methods: tuple[str, ...]
    frames: int = 1
    limit: int | None = None
    engine: str | None = None
    threads: int | None = None
    seed: int = 0
    keep: Path | None = None


def parse_sweep(text: str) -> tuple[int, ...]:
    """`tokens=8,16,32` -> (8, 16, 32), ascending and each once.

    Raises:
        RecipeError: If the text has another form.
    """
    match = re.fullmatch(r"tokens=(\d{1,9}(?:,\d{1,9})*)", text.replace(" ", ""), re.ASCII)
    if not match:
        raise RecipeError(f"a sweep looks like tokens=8,16,32, got '{text[:60]}'")
    budgets = tuple(sorted({int(number) for number in match[1].split(",")}))
    if not 1 <= budgets[0] <= budgets[-1] <= MOST_TOKENS:
        raise RecipeError(f"the budgets of a sweep are 1 to {MOST_TOKENS}, got '{text[:60]}'")
    return budgets


def parse_methods(text: str) -> tuple[str, ...]:
    """Names with commas, each NAME[@SITE] or all[@SITE], as NAME or NAME@decoder.

    The baselines are added; `identity` is a row anyway.

    Raises:
        RecipeError: For an unknown name, or a method that does not reduce visual tokens.
    """
    methods = set[str]()
    for part in text.split(","):
        name, _, site = part.strip().replace("-", "_").partition("@")
        if name == ALL:
            site, names = site or SITE, METHODS.names(site or SITE) if site in ("", DECODER) else []
        else:
            site, names = METHODS.site_of(name, site or None), [name]
        if site not in (SITE, DECODER):
            raise RecipeError(
                f"method '{name}' at site '{site}': a sweep is of sites '{SITE}' and '{DECODER}'"
            )
        methods |= {name if site == SITE else f"{name}@{site}" for name in names}
    return tuple(sorted({*methods, *BASELINES} - {UNREDUCED}))


def sweep(
    request: SweepRequest, progress: Say = lambda _: None, done: Say = lambda _: None
) -> list[SweepRow]:
    """Evaluate `identity`, and every method at every budget.

    Args:
        request: What to sweep.
        progress: Called with one line per step.
        done: Called with one line per finished row.

    Raises:
        EdgeVLMError: If the model cannot be exported at all, or the dataset not be read.
    """
    require_torch()
    from edgevlm.evaluation.pytorch import question_plan
    from edgevlm.models.find import find

    checkpoint = find(request.model)
    unreduced = Recipe(
        model=request.model, methods=(MethodChoice(UNREDUCED),), frames=request.frames
    )
    planned = question_plan(unreduced, checkpoint)
    weights, most = _contents(checkpoint.folder), planned.plan.host.visual_tokens
    graphs: Graphs = {}  # encoder, decoder and head are the same for all methods
    first = SweepRow(UNREDUCED, most, _evaluate(request, unreduced, weights, graphs, progress))
    rows = [first]
    done(_line(first))
    for method in request.methods:
        for recipe in _recipes(unreduced, MethodChoice.parse(method), request.budgets, planned):
            rows.append(_row(request, recipe, weights, planned, graphs, progress))
            done(_line(rows[-1]))
    return rows


def table_csv(rows: list[SweepRow]) -> str:
    """One line for each method, budget and score; a budget without scores has its reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        evaluation = row.evaluation
        if evaluation is None:
            writer.writerow([row.method, row.tokens, *[""] * 9, row.reason])
            continue
        ttft = evaluation.ttft_ms
        per_row = [ttft and ttft.median, ttft and ttft.p90, evaluation.bundle_bytes, None]
        for kind, name, score in _scores(evaluation):
            numbers = [score.accuracy, score.low, score.high, score.n]
            writer.writerow([row.method, row.tokens, kind, name, *numbers, *per_row])
    return text.getvalue()


def bundle_path(recipe: Recipe, weights: str, keep: Path | None) -> Path:
    """Path of a recipe's bundle; `weights` identifies the checkpoint's contents."""
    identity = edgevlm.__version__ + dumps(recipe) + weights
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    name = f"sweep-{_name(recipe)}-{recipe.tokens or 'all'}-{digest}.edgevlm"
    return (keep or cache_folder()) / name


def _recipes(
    unreduced: Recipe, choice: MethodChoice, budgets: tuple[int, ...], planned: VlmPlanned
) -> list[Recipe]:
    """The method at each budget; at site `decoder` once where one number is not what it takes."""
    from edgevlm.planning.methods import choose_decoder_method

    if choice.site != DECODER:
        return [replace(unreduced, tokens=tokens, methods=(choice,)) for tokens in budgets]
    recipes = [
        replace(unreduced, methods=(replace(choice, options=(("tokens", tokens),)),))
        for tokens in budgets
    ]
    one = replace(unreduced, methods=(replace(choice, options=(("tokens", 1),)),))
    try:
        most = planned.plan.host.visual_tokens
        choose_decoder_method(one, planned.description.decoder, most)
    except EdgeVLMError:
        return [replace(unreduced, methods=(choice,))]
    return recipes


def _row(
    request: SweepRequest,
    recipe: Recipe,
    weights: str,
    planned: VlmPlanned,
    graphs: Graphs,
    progress: Say,
) -> SweepRow:
    from edgevlm.planning.methods import choose_decoder_method, choose_method

    name, most = _name(recipe), planned.plan.host.visual_tokens
    tokens = recipe.tokens or int(dict(recipe.methods[0].options).get("tokens", 0))
    if recipe.methods[0].site == DECODER:  # its decoder is its own
        graphs = {}
    try:
        description = planned.description
        _, site, _ = choose_method(recipe, description.shape, description.decoder)
        _, sites = choose_decoder_method(recipe, description.decoder, most)
        site = sites[0] if sites else site
        tokens = site.tokens_out
        if site.tokens_out == site.tokens_in:
            return SweepRow(name, tokens, None, f"keeps all {tokens} tokens, as {UNREDUCED} does")
        return SweepRow(name, tokens, _evaluate(request, recipe, weights, graphs, progress))
    except EdgeVLMError as cause:
        return SweepRow(name, tokens, None, str(cause))


def _name(recipe: Recipe) -> str:
    """NAME, or NAME@decoder, of the recipe's method."""
    (choice,) = recipe.methods
    return choice.name + (f"@{choice.site}" if choice.site else "")


def _evaluate(
    request: SweepRequest, recipe: Recipe, weights: str, graphs: Graphs, progress: Say
) -> Evaluation:
    from edgevlm.pipeline import export

    examples = request.dataset.examples(request.frames, request.limit)  # checks its files
    path = bundle_path(recipe, weights, request.keep)
    name = f"{recipe.methods[0]} {recipe.tokens or 'all'} tokens"
    with alone(path.stem, lambda: progress(f"{name}: wait for another sweep, which exports it")):
        if not is_sound(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if request.keep is None:  # in the cache, where it may have been damaged
                shutil.rmtree(path, ignore_errors=True)
            export(recipe, path, progress=lambda step: progress(f"{name}: {step}"), graphs=graphs)
    return evaluate(
        BundleAnswerer(path, request.engine, request.threads),
        examples,
        path.name,
        request.dataset.name,
        request.seed,
        lambda step: progress(f"{name}: {step}"),
    )


def _scores(evaluation: Evaluation) -> Iterator[tuple[str, str, Score]]:
    yield "all", "", Score(evaluation.accuracy, evaluation.low, evaluation.high, evaluation.n)
    for name, score in evaluation.tasks.items():
        yield "task", name, score
    for name, score in evaluation.groups.items():
        yield "group", name, score


def _line(row: SweepRow) -> str:
    result = f"{row.evaluation.accuracy:.1%}" if row.evaluation else f"not possible: {row.reason}"
    return f"{row.method} {row.tokens} tokens: {result}"


def _contents(folder: Path) -> str:
    """A text that changes with the files that an export reads."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".jinja"))
    return " ".join(f"{path.name}:{sha256(path)}" for path in files)
