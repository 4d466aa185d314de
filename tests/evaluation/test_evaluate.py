"""What is asked and what is left out, the result, and the two who are asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm.bundle.documents import to_document
from edgevlm.errors import InputError, RecipeError
from edgevlm.evaluation import evaluate as module
from edgevlm.evaluation.evaluate import Reply, evaluate, find_dataset
from edgevlm.evaluation.examples import Example, Question

PHOTOS = Path(__file__).parents[2] / "edgevlm" / "photos"
PICTURE = Image.new("RGB", (8, 8))


class Parrot:
    """Answers with the question, and writes down what it was shown and asked."""

    engine, visual_tokens, bundle_bytes, picker = "parrot", 5, 1000, ""

    def __init__(self, frames=1):
        self.frames, self.log = frames, []

    def set_frames(self, frames):
        self.log.append(len(frames))
        self.fresh = True

    def ask(self, prompt, follow_up):
        self.log.append((prompt, follow_up))
        fresh, self.fresh = self.fresh, False
        return Reply(prompt, float(len(self.log)) if fresh else None)


def example(name, frames=1, chat=False, tasks=("shape", "count")):
    questions = tuple(Question(task, f"{task} {i}", f"{task} 0") for i, task in enumerate(tasks))
    return Example(name, (PICTURE,) * frames, questions, chat)


def test_what_is_asked_of_a_model_of_pictures():
    parrot = Parrot()
    given = [example("a"), example("b", 4), example("c", chat=True), example("d", 0)]
    found = evaluate(parrot, given, "model", "set")
    assert parrot.log == [
        1, ("shape 0", False), ("count 1", False), 1, ("shape 0", False), ("count 1", True)
    ]  # fmt: skip
    assert (found.accuracy, found.n, found.scenes) == (0.5, 4, 2)
    assert {name: s.accuracy for name, s in found.tasks.items()} == {
        "shape": 1, "count": 0, "multi_turn": 0.5
    }  # fmt: skip
    assert found.asked == {"image": 4}
    assert found.left_out == {"clips, the model takes images": 2}
    assert (found.ttft_ms.n, found.ttft_ms.median, found.ttft_ms.p90) == (2, 3.5, 4.7)
    assert found.not_measured == {}
    assert (found.visual_tokens, found.engine, found.bundle_bytes) == (5, "parrot", 1000)


def test_what_is_asked_of_a_model_of_clips():
    parrot = Parrot(frames=4)
    given = [example("a"), example("b", 4), example("c", 3), example("d", 0)]
    found = evaluate(parrot, given, "model", "set")
    assert [entry for entry in parrot.log if isinstance(entry, int)] == [4, 4]
    assert found.asked == {"still as clip": 2, "clip": 2}
    assert set(found.groups) == {"image", "clip", "detail"}
    assert found.left_out == {
        "clips of 3 frames, the model takes 4 frames": 1,
        "clips of 0 frames, the model takes 4 frames": 1,
    }


def test_the_result_as_a_document():
    document = to_document(evaluate(Parrot(), [example("a")], "model", "set"))
    assert json.loads(json.dumps(document)) == document
    assert set(document) >= {"accuracy", "tasks", "visual_tokens", "low", "high", "n", "groups"}
    assert set(document["tasks"]["shape"]) == {"accuracy", "low", "high", "n"}


def test_what_was_not_measured_has_a_reason(monkeypatch):
    parrot = Parrot()
    parrot.bundle_bytes = None
    monkeypatch.setattr(parrot, "ask", lambda prompt, follow_up: Reply(prompt))
    found = evaluate(parrot, [example("a")], "model", "set")
    assert (found.ttft_ms, found.bundle_bytes) == (None, None)
    assert set(found.not_measured) == {"ttft_ms", "bundle_bytes"}


def test_progress_is_a_line_now_and_then(monkeypatch):
    lines = []
    evaluate(Parrot(), [example("a")] * 3, "model", "set", progress=lines.append)
    assert lines == []
    monkeypatch.setattr(module, "PAUSE_S", -1)
    evaluate(Parrot(), [example("a")] * 2, "model", "set", progress=lines.append)
    assert lines == [
        "2 questions asked, 50.0% right so far",
        "4 questions asked, 50.0% right so far",
    ]


def test_nothing_to_ask_is_an_error():
    with pytest.raises(InputError, match=r"^dataset 'set' asks nothing$"):
        evaluate(Parrot(), [], "model", "set")
    with pytest.raises(InputError) as error:
        evaluate(Parrot(), [example("a", 4), example("b", 0)], "model", "set")
    assert str(error.value) == (
        "dataset 'set' asks nothing: 2 scenes left out: clips, the model takes images"
    )


def test_an_error_names_the_scene(monkeypatch):
    def fail(pictures):
        raise InputError("too long")

    parrot = Parrot()
    monkeypatch.setattr(parrot, "set_frames", fail)
    with pytest.raises(InputError, match=r"^scene 'a': too long$"):
        evaluate(parrot, [example("a")], "model", "set")


def test_find_dataset(tmp_path, monkeypatch):
    file = tmp_path / "own.jsonl"
    file.touch()
    for text in (str(file), f"jsonl:{file}"):
        found = find_dataset(text)
        assert (found.name, found.path) == (text, file)
        assert found.module.__name__ == "edgevlm.evaluation.datasets.jsonl"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").touch()
    assert find_dataset("own").path == Path("own")
    assert find_dataset("nlvr:some:where").path == Path("some:where")


@pytest.mark.parametrize(
    ("only", "asked"),
    [
        (("clip",), {"clip": [("shape", "count")]}),
        (("image",), {"image": [("shape", "count")]}),
        (("count", "multi_turn"),
         {"image": [("count",)], "clip": [("count",)], "chat": [("shape", "count")]}),
    ],
)  # fmt: skip
def test_questions_of_some_kinds_and_tasks_alone(only, asked):
    given = [example("image"), example("clip", 4), example("chat", chat=True)]
    found: dict[str, list] = {}
    for one in module.chosen(given, only, "set"):
        found.setdefault(one.scene, []).append(tuple(q.task for q in one.questions))
    assert found == asked


def test_a_limit_counts_the_scenes_that_are_asked():
    scenes = list(find_dataset("embedded", only=("turn",)).examples(4, 3))
    assert len(scenes) == 3
    assert {question.task for scene in scenes for question in scene.questions} == {"turn"}
    assert {len(scene.frames) for scene in scenes} == {4}


def test_an_unknown_kind_or_task_names_those_of_the_dataset():
    given = [example("image"), example("chat", chat=True)]
    with pytest.raises(InputError) as error:
        list(module.chosen(given, ("shape", "clips"), "set"))
    assert str(error.value) == (
        "dataset 'set' has no question of 'clips'; got --only shape,clips, expected some of count,"
        " image, multi_turn, shape"
    )


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("nlvx", RecipeError, "unknown dataset 'nlvx'; did you mean 'nlvr'? known: "),
        ("_lines", RecipeError, "unknown dataset '_lines'"),
        ("nlvr", RecipeError, "dataset 'nlvr' needs a path: nlvr:PATH, the folder of NLVR"),
        ("jsonl:", RecipeError, "dataset 'jsonl' needs a path: jsonl:PATH, a .jsonl file"),
        ("no/such.jsonl", InputError, "no file of questions at 'no/such.jsonl'"),
        ("such.jsonl", InputError, "no file of questions at 'such.jsonl'"),
        ("x" * 5000 + ".jsonl", InputError, "no file of questions at 'xxx"),
        ("a\0b.jsonl", InputError, "no file of questions at 'a"),
    ],
)
def test_a_wrong_dataset_is_one_line(text, kind, message):
    with pytest.raises(kind) as error:
        find_dataset(text)
    assert str(error.value).startswith(message)


def test_a_dataset_without_a_path(monkeypatch):
    from edgevlm.registry import DATASETS

    monkeypatch.setattr(DATASETS.load("nlvr"), "PATH", None)
    assert find_dataset("nlvr").path is None
    with pytest.raises(RecipeError, match=r"^dataset 'nlvr' takes no path, got 'x'$"):
        find_dataset("nlvr:x")


@pytest.fixture(scope="module")
def flower():
    return Image.open(PHOTOS / "flower.jpg").convert("RGB")


@pytest.fixture(scope="module")
def stream():
    return Image.open(PHOTOS / "stream.jpg").convert("RGB")


def test_a_bundle_answers_as_generate_and_chat_do(exported, flower, stream):
    from edgevlm.api import load
    from edgevlm.evaluation.answerers import answerer

    model, who = load(exported.bundle.path), answerer(str(exported.bundle.path))
    assert (who.frames, who.visual_tokens, who.engine) == (1, 16, "onnxruntime")
    files = [
        p for p in exported.bundle.path.rglob("*") if p.is_file() and "measured" not in p.parts
    ]
    size = sum(p.stat().st_size for p in files if p.name != "manifest.json")
    assert who.bundle_bytes == size
    for picture in (flower, stream):
        who.set_frames([picture])
        for index, prompt in enumerate(("What is this?", "A red one?")):
            reply = who.ask(prompt, follow_up=False)
            assert reply.text == model.generate(picture, prompt, max_new_tokens=16).text
            assert (reply.ttft_ms is None) == (index > 0)
            later = who.ask("And this?", follow_up=True)
            assert later == Reply(model.chat("And this?", max_new_tokens=16).text)


def test_a_bundle_encodes_a_picture_once(exported, flower, monkeypatch):
    from edgevlm.evaluation.answerers import BundleAnswerer
    from edgevlm.runtimes.loops.text import TextLoop

    who, seen, see = BundleAnswerer(exported.bundle.path, threads=1), [], TextLoop.see
    monkeypatch.setattr(TextLoop, "see", lambda *a: seen.append(1) or see(*a))
    who.set_frames([flower])
    for _ in range(3):
        who.ask("What?", follow_up=False)
    assert len(seen) == 1
    assert who._loop.blocks.engine.threads == 1


@pytest.fixture(scope="module")
def reference(tiny_model):
    from edgevlm.evaluation.answerers import answerer

    return answerer(tiny_model)


def test_a_model_answers_with_all_tokens(reference):
    assert reference.engine == "pytorch"
    assert reference.visual_tokens == reference._planned.plan.sites[0].tokens_in
    assert (reference.bundle_bytes, reference.frames) == (None, 1)


def test_kept_rows_change_no_answer(reference, flower, stream):
    """Rows that two prompts share are computed once; the logits are those of a fresh start."""
    prompts = ("What is this?", "What is that?", "W", "What is this?", "How many stars are there?")
    for picture in (flower, stream):
        fresh = []
        for prompt in prompts:
            reference.set_frames([picture])
            fresh.append((reference.ask(prompt, False), reference.ask("And?", True)))
        reference.set_frames([picture])
        assert [(reference.ask(p, False), reference.ask("And?", True)) for p in prompts] == fresh
        assert any(reply.text for reply, _ in fresh)


def test_a_model_reuses_the_rows_of_the_picture(reference, flower, monkeypatch):
    fed, feed = [], type(reference)._feed
    monkeypatch.setattr(
        type(reference), "_feed", lambda s, p: fed.append(len(p.rows)) or feed(s, p)
    )
    reference.set_frames([flower])
    reference.ask("What is this?", follow_up=False)
    whole = fed[0]
    fed.clear()
    reference.ask("What is that?", follow_up=False)
    assert 1 <= fed[0] <= whole - reference.visual_tokens


def test_a_model_answers_as_without_any_cache(reference, flower):
    """The whole sequence through transformers' forward again for each token, no position given."""
    import torch

    from edgevlm.runtimes.loops.sequence import assemble

    reference.set_frames([flower])
    reply = reference.ask("What is this?", follow_up=False)
    plan = reference._plan
    piece = assemble(
        plan, plan.host.layout.prompt, reference._table, reference._tokenizer, "What is this?",
        [reference._visual], 0,
    )  # fmt: skip
    rows = torch.from_numpy(piece.rows)[None]
    ids = []
    with torch.no_grad():
        while len(ids) < 16 and not set(ids) & set(plan.host.stop_ids):
            out = reference._parts.decoder.language_model(inputs_embeds=rows, use_cache=False)
            logits = out.last_hidden_state[0, -1] @ reference._parts.head.T
            ids.append(int(logits.argmax()))
            rows = torch.cat(
                [rows, torch.from_numpy(np.array(reference._table[ids[-1]]))[None, None]], 1
            )
    said = [i for i in ids if i not in plan.host.stop_ids]
    assert reply.text == reference._tokenizer.decode(said, skip_special_tokens=True)


def test_a_question_that_does_not_fit(reference, exported, flower):
    from edgevlm.evaluation.answerers import answerer

    for who in (reference, answerer(str(exported.bundle.path))):
        given = [Example("a", (flower,), (Question("t", "word " * 5000, "a"),))]
        with pytest.raises(
            InputError, match=r"^scene 'a': the turn has (more than )?\d+ tokens, the context"
        ):
            evaluate(who, given, "model", "set")


def test_options_that_do_not_go_with_what_is_asked(exported, tmp_path):
    from edgevlm.evaluation.answerers import answerer, is_bundle

    with pytest.raises(RecipeError, match=r"^a bundle has its frames already; --frames goes with"):
        answerer(str(exported.bundle.path), frames=4)
    with pytest.raises(RecipeError, match=r"^'embedded' is a model, which PyTorch runs; --engine"):
        answerer("embedded", engine="onnxruntime")
    assert is_bundle(str(tmp_path / "no.edgevlm"))
    assert not is_bundle(str(tmp_path))
    (tmp_path / "manifest.json").touch()
    assert is_bundle(str(tmp_path))


def test_weights_stay_in_their_files_and_answers_are_the_same(tiny_model, monkeypatch):
    pytest.importorskip("torch")
    from edgevlm.evaluation import pytorch
    from edgevlm.models.weights.paging import FileWeight
    from edgevlm.recipe import Recipe

    picture, replies = Image.linear_gradient("L").convert("RGB"), []
    for kept_bytes in (10**9, 0):
        monkeypatch.setattr(pytorch, "KEPT_BYTES", kept_bytes)
        source = pytorch.PyTorchAnswerer.open(Recipe(model=tiny_model))
        source.set_frames([picture])
        replies.append(source.ask("What is this?", follow_up=False))
        weights = [w for w in source._model.parameters() if isinstance(w, FileWeight)]
        assert len(weights) > 30
        assert any(weight._numbers is not None for weight in weights) == bool(kept_bytes)
    assert replies[0] == replies[1]


def test_the_embedded_model_sees():
    """What it has learned well: hands, sizes, shapes and letters of scenes it has not seen."""
    from edgevlm.evaluation.answerers import answerer

    examples = find_dataset("embedded").examples(1, 50)
    found = evaluate(answerer("embedded"), examples, "embedded", "embedded")
    for task, least in {"sign": 0.85, "size": 0.8, "shape": 0.8, "read": 0.7}.items():
        assert found.tasks[task].accuracy >= least, task
