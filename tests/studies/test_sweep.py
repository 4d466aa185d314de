"""A sweep: which bundles are made and kept, its rows, its table and its picture."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from edgevlm.bundle.measures import Stat
from edgevlm.errors import ExportError, InputError, RecipeError, RuntimeLoadError
from edgevlm.evaluation.evaluate import Dataset, Evaluation, evaluate
from edgevlm.evaluation.examples import Example, Question
from edgevlm.evaluation.scores import Score
from edgevlm.recipe import Recipe
from edgevlm.studies import sweep_files
from edgevlm.studies.sweep import (
    COLUMNS,
    SweepRequest,
    SweepRow,
    bundle_path,
    parse_methods,
    parse_sweep,
    sweep,
    table_csv,
)
from edgevlm.studies.sweep_files import check_prefix, draw, require_matplotlib, write

PHOTO = Path(__file__).parents[2] / "edgevlm" / "photos" / "flower.jpg"


def photo_questions(path, frames, limit):
    """A photograph with questions whose answers nobody gives."""
    questions = (Question("count", "How many?", "none"), Question("t", "What is this?", "none"))
    return iter([Example("photo", (Image.open(PHOTO).convert("RGB"),), questions)][:limit])


DATASET = Dataset("photo", SimpleNamespace(examples=photo_questions), None)


def evaluation(accuracy=0.5, tokens=64, ttft=None):
    score = Score(accuracy, accuracy - 0.1, accuracy + 0.1, 10)
    return Evaluation(
        "m", "d", "engine", 1, tokens, score.accuracy, score.low, score.high, 10, 4,
        {"count": score}, {"detail": score}, {"image": 10}, {}, ttft, 1000, 1.0, {},
    )  # fmt: skip


ROWS = [
    SweepRow("identity", 64, evaluation(0.9, ttft=Stat(4, 8.5, 9.0))),
    SweepRow("divprune", 8, evaluation(0.7, 8)),
    SweepRow("divprune", 16, evaluation(0.8, 16, Stat(4, 5.0, 6.0))),
    SweepRow("random", 100, None, "too many, of 64"),
]


@pytest.mark.parametrize(
    ("text", "budgets"),
    [("tokens=8", (8,)), ("tokens=32,8,16", (8, 16, 32)), (" tokens = 8, 8 ", (8,))],
)
def test_parse_sweep(text, budgets):
    assert parse_sweep(text) == budgets


@pytest.mark.parametrize(
    "text",
    ["", "8,16", "tokens", "tokens=", "tokens=8,", "tokens=-8", "tokens=8-16", "tokens=a",
     "frames=4", "tokens=8;16", "tokens=1e3", "tokens=٨", "tokens=" + "9" * 30],
)  # fmt: skip
def test_a_wrong_sweep_is_one_line(text):
    with pytest.raises(RecipeError) as error:
        parse_sweep(text)
    assert str(error.value) == f"a sweep looks like tokens=8,16,32, got '{text[:60]}'"


@pytest.mark.parametrize("text", ["tokens=0,8", "tokens=999999999"])
def test_a_budget_out_of_range(text):
    with pytest.raises(
        RecipeError, match=r"^the budgets of a sweep are 1 to 16777216, got 'tokens="
    ):
        parse_sweep(text)


def test_baselines_are_always_among_the_methods(monkeypatch):
    pytest.importorskip("torch")
    assert parse_methods("divprune") == ("average_pool", "divprune", "random")
    assert parse_methods("tome, average-pool") == ("average_pool", "random", "tome")
    assert parse_methods("identity") == ("average_pool", "random")
    everything = parse_methods("all")
    assert {"divprune", "tome"} < set(everything)
    assert "identity" not in everything
    with pytest.raises(RecipeError, match=r"^unknown method 'divprun'; did you mean 'divprune'"):
        parse_methods("tome,divprun")
    assert not any("@" in name for name in everything)
    assert parse_methods("fastv") == ("average_pool", "fastv@decoder", "random")
    assert parse_methods("aim,aim@decoder") == ("aim", "aim@decoder", "average_pool", "random")
    inside = set(parse_methods("all@decoder"))
    assert {"aim@decoder", "fastv@decoder", "random"} < inside
    assert set(parse_methods("all,all@decoder")) == inside | set(everything)
    for name, site in {"dymu": "vision", "tome@vision": "vision", "all@vision": "vision"}.items():
        with pytest.raises(
            RecipeError,
            match=rf"^method '{name.split('@')[0]}' at site '{site}': a sweep is of sites 'tokens'",
        ):
            parse_methods(name)


def test_a_bundle_is_kept_by_recipe_and_weights(tmp_path, monkeypatch):
    recipe = Recipe(tokens=8, methods=("tome",))
    path = bundle_path(recipe, "weights", tmp_path)
    assert path.parent == tmp_path
    assert path.name.startswith("sweep-tome-8-")
    assert path == bundle_path(recipe, "weights", tmp_path)
    others = [
        bundle_path(recipe, "other", tmp_path),
        bundle_path(Recipe(tokens=8, methods=("tome",), frames=2), "weights", tmp_path),
        bundle_path(Recipe(model="x", tokens=8, methods=("tome",)), "weights", tmp_path),
    ]
    assert len({path, *others}) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert bundle_path(recipe, "w", None).parent == tmp_path / "cache" / "edgevlm"
    whole = Recipe(methods=("identity",))
    assert bundle_path(whole, "w", None).name.startswith("sweep-identity-all-")


@pytest.fixture
def exports(exported, monkeypatch):
    """Recipes that were exported; each export is a copy of the session's bundle."""
    from edgevlm import pipeline

    made = []

    def export(recipe, path, progress, graphs):
        progress("plan")
        if str(recipe.methods[0]) == "tome":
            raise ExportError("differs from PyTorch")
        made.append((str(recipe.methods[0]), recipe.tokens))
        shutil.copytree(exported.bundle.path, path)

    monkeypatch.setattr(pipeline, "export", export)
    return made


def test_rows_in_order_with_reasons_and_bundles_made_once(tiny_model, exports, exported, tmp_path):
    most = exported.bundle.plan.sites[0].tokens_in
    budgets = (4, most, most + 1)
    request = SweepRequest(
        tiny_model, DATASET, budgets, ("random", "tome"), keep=tmp_path / "a" / "b"
    )
    steps, done = [], []
    rows = sweep(request, steps.append, done.append)
    assert [(row.method, row.tokens) for row in rows] == [
        ("identity", most), *[(name, k) for name in ("random", "tome") for k in budgets]
    ]  # fmt: skip
    assert exports == [("identity", None), ("random", 4)]
    assert [row.evaluation is not None for row in rows] == [True, True, *[False] * 5]
    reasons = [row.reason for row in rows if row.evaluation is None]
    same, differs = f"keeps all {most} tokens, as identity does", "differs from PyTorch"
    assert [reasons[0], reasons[2], reasons[3]] == [same, differs, same]
    assert reasons[1].startswith(f"random: got tokens={most + 1}, expected 1 to {most}")
    assert len(done) == len(rows)
    assert done[0] == f"identity {most} tokens: 0.0%"
    assert done[2] == f"random {most} tokens: not possible: {same}"
    assert steps[:2] == ["identity all tokens: plan", "random 4 tokens: plan"]
    assert rows[0].evaluation.ttft_ms.n == 1
    again = sweep(request)
    assert exports == [("identity", None), ("random", 4)]
    assert [row.reason for row in again] == [row.reason for row in rows]
    assert len(list((tmp_path / "a" / "b").iterdir())) == 2


def test_decoder_methods_leave_a_budget_or_their_own_stages(
    tiny_model, exports, exported, tmp_path
):
    """Of two layers: fastv's third is not there, pyramiddrop halves the tokens once."""
    most = exported.bundle.plan.sites[0].tokens_in
    methods = ("fastv@decoder", "holitom@decoder", "pyramiddrop@decoder")
    request = SweepRequest(tiny_model, DATASET, (4, most, 999), methods, keep=tmp_path)
    rows = {(row.method, row.tokens): row for row in sweep(request)[1:]}
    assert list(rows) == [
        ("fastv@decoder", 0), *[("holitom@decoder", tokens) for tokens in (4, most, 999)],
        ("pyramiddrop@decoder", most // 2),
    ]  # fmt: skip
    assert rows["fastv@decoder", 0].reason.startswith("fastv: got layers [2], expected ")
    assert rows["holitom@decoder", 4].evaluation
    assert rows["holitom@decoder", most].reason == f"keeps all {most} tokens, as identity does"
    assert rows["holitom@decoder", 999].reason.startswith("holitom: got 999 tokens")
    assert rows["pyramiddrop@decoder", most // 2].evaluation
    names = sorted(path.name.rpartition("-")[0] for path in tmp_path.iterdir())
    assert names == [
        "sweep-holitom@decoder-all", "sweep-identity-all", "sweep-pyramiddrop@decoder-all"
    ]  # fmt: skip


def test_a_dataset_is_checked_before_the_first_export(tiny_model, exports, tmp_path):
    from edgevlm.evaluation.datasets import jsonl

    dataset = Dataset("x", jsonl, tmp_path / "no.jsonl")
    with pytest.raises(InputError, match=r"no file at"):
        sweep(SweepRequest(tiny_model, dataset, (4,), ("random",), keep=tmp_path / "kept"))
    assert exports == []


def test_the_reference_row_answers_as_the_model_does(tiny_model, tmp_path):
    """All tokens through the engine, and the checkpoint in PyTorch: the same answers."""
    from edgevlm.evaluation.answerers import answerer

    request = SweepRequest(tiny_model, DATASET, (4,), (), keep=tmp_path)
    (row,) = sweep(request)
    (bundle,) = tmp_path.iterdir()
    reference = answerer(tiny_model)
    assert row.tokens == row.evaluation.visual_tokens == reference.visual_tokens
    picture = Image.open(PHOTO).convert("RGB")
    said = []
    for who in (answerer(str(bundle)), reference):
        who.set_frames([picture])
        asked = [("What is this?", False), ("And?", True), ("How many?", False), ("W", False)]
        said.append([who.ask(*one).text for one in asked])
    assert said[0] == said[1]
    assert any(said[0])
    examples = photo_questions(None, 1, None)
    assert evaluate(reference, examples, "m", "d").tasks == row.evaluation.tasks


def test_table_by_hand():
    lines = list(csv.DictReader(table_csv(ROWS).splitlines()))
    assert list(lines[0]) == list(COLUMNS)
    assert [(r["method"], r["tokens"], r["kind"], r["name"]) for r in lines] == [
        ("identity", "64", "all", ""), ("identity", "64", "task", "count"),
        ("identity", "64", "group", "detail"),
        ("divprune", "8", "all", ""), ("divprune", "8", "task", "count"),
        ("divprune", "8", "group", "detail"),
        ("divprune", "16", "all", ""), ("divprune", "16", "task", "count"),
        ("divprune", "16", "group", "detail"), ("random", "100", "", ""),
    ]  # fmt: skip
    first, late, last = lines[1], lines[4], lines[-1]
    assert (float(first["accuracy"]), float(first["low"]), first["n"]) == (0.9, 0.8, "10")
    assert (first["ttft_median_ms"], first["ttft_p90_ms"]) == ("8.5", "9.0")
    assert (first["bundle_bytes"], first["reason"]) == ("1000", "")
    assert late["ttft_median_ms"] == ""  # not measured is nothing, not 0
    assert (last["accuracy"], last["reason"]) == ("", "too many, of 64")


def test_files_are_written_and_not_written_over(tmp_path):
    pytest.importorskip("matplotlib")
    prefix = str(tmp_path / "s")
    files = write(ROWS, "title", prefix, force=False)
    assert files == (tmp_path / "s.csv", tmp_path / "s.png")
    assert (tmp_path / "s.csv").read_bytes() == table_csv(ROWS).encode()
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width > 2 * picture.height  # two panels
    before = files[1].read_bytes()
    with pytest.raises(
        InputError, match=r"s.csv' exists; choose another --output or give --force$"
    ):
        write(ROWS[:1], "title", prefix, force=False)
    assert files[1].read_bytes() == before
    write(ROWS, "title", prefix, force=True)
    assert files[1].read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.png"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")

    def fail(rows, title):
        raise OSError("disk full")

    monkeypatch.setattr(sweep_files, "draw", fail)
    with pytest.raises(OSError, match=r"disk full"):
        write(ROWS, "title", str(tmp_path / "s"), force=False)
    assert list(tmp_path.iterdir()) == []


def test_the_picture_has_both_panels_and_a_line_a_method(monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    made, new = [], figure.Figure
    monkeypatch.setattr(figure, "Figure", lambda **o: made.append(new(**o)) or made[-1])
    draw(ROWS, "a title")
    left, right = made[0].axes
    assert left.get_xscale() == "log"
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "identity", "divprune"  # `random` has no point
    ]  # fmt: skip
    lines = {bars.get_label(): bars.lines[0] for bars in left.containers}
    assert list(lines["divprune"].get_xdata()) == [8, 16, 64]  # ends in the point of all tokens
    assert list(lines["divprune"].get_ydata()) == [70, 80, 90]
    assert list(right.lines[1].get_xdata()) == [5.0, 8.5]  # the untimed budget is not there
    assert {a.get_color() for a in lines.values()} == {line.get_color() for line in right.lines}


def test_check_prefix(tmp_path):
    check_prefix(str(tmp_path / "s"), force=False)
    with pytest.raises(
        InputError, match=r"s.csv' cannot be written: the folder '.*no' does not exist; create it$"
    ):
        check_prefix(str(tmp_path / "no" / "s"), force=True)
    (tmp_path / "s.png").mkdir()
    with pytest.raises(InputError, match=r"s.png' is a folder; choose another --output$"):
        check_prefix(str(tmp_path / "s"), force=True)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(RuntimeLoadError) as error:
        require_matplotlib()
    expected = "the picture of a sweep needs matplotlib; pip install 'edgevlm[evaluate]'"
    assert str(error.value) == expected
