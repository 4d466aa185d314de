"""The training script: same seed same weights, goes on where it stopped, writes a checkpoint."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.evaluation.datasets.shared import material  # noqa: E402
from edgevlm.evaluation.datasets.shared.drawing import Item, text_size  # noqa: E402
from edgevlm.evaluation.examples import Question  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "samples" / "train_embedded"
EMBEDDED = Path(__file__).parents[2] / "edgevlm" / "embedded"
QUICK = ("--batch", "2", "--dense-steps", "1", "--every", "2", "--check", "1", "--workers", "0")


@pytest.fixture(scope="module")
def script():
    """All names of the script's files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT))
        for file in ("model", "referents", "batches"):
            patch.setitem(sys.modules, file, importlib.import_module(file))
        main = importlib.util.spec_from_file_location("train_embedded", SCRIPT / "__main__.py")
        module = importlib.util.module_from_spec(main)
        main.loader.exec_module(module)
        names = dict[str, object]()
        for file in ("model", "referents", "batches"):
            names |= vars(sys.modules[file])
        yield SimpleNamespace(**(names | vars(module)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The archives in small: pictures of the package in the folders of the originals."""
    folder, packaged = tmp_path_factory.mktemp("data"), material.packaged_material()
    for digit in range(10):
        (folder / "sign_digits" / str(digit)).mkdir(parents=True)
        for number in range(35):
            path = folder / "sign_digits" / str(digit) / f"{number:03d}.JPG"
            packaged.photos[digit * 20 + number % 20].save(path)
    (folder / "emoji_noto" / "png72").mkdir(parents=True)
    for number, emoji in enumerate(packaged.emoji):
        emoji.save(folder / "emoji_noto" / "png72" / f"emoji_{number}.png")
    pictures = folder / "nlvr" / "train" / "images" / "1"
    pictures.mkdir(parents=True)
    lines = []
    for number in range(1, 31):
        Image.new("RGB", (400, 100), (8 * number, 9, 9)).save(pictures / f"{number}.png")
        said = {"sentence": "There is a box.", "label": "true", "identifier": f"{number}-0"}
        lines.append(json.dumps(said | {"directory": "1", "images": [f"{number}.png"]}))
    (folder / "nlvr" / "train" / "train1000.jsonl").write_text("\n".join(lines))
    return folder


def train(script, run, data, *more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), str(run), "--data", str(data), *QUICK, *more])
        script.main()


def train_as_a_process(run, data, *more):
    command = [sys.executable, str(SCRIPT), str(run), "--data", str(data), *QUICK, *more]
    here = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=here)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(run):
    return torch.load(run / "state.pt", weights_only=True)["trainee"]


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(script, data, tmp_path):
    train(script, tmp_path / "whole", data, "--steps", "2", "--out", str(tmp_path / "checkpoint"))
    (tmp_path / "parts").mkdir()  # a tokenizer that is there is not trained again
    shutil.copy(tmp_path / "whole" / "tokenizer.json", tmp_path / "parts")
    train(script, tmp_path / "parts", data, "--steps", "2", "--hours", "0")  # one step, it stops
    first = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)
    assert first["step"] == 1
    train_as_a_process(tmp_path / "parts", data, "--steps", "2")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    rows = list(csv.DictReader((tmp_path / "whole" / "log.csv").open()))
    assert [int(row["step"]) for row in rows] == [2]
    assert all(0 <= float(row["all"]) <= 1 for row in rows)
    assert Image.open(tmp_path / "whole" / "curves.png").width > 500

    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint", dtype="float32")
    name = "model.vision_tower.encoder.layers.0.mlp.fc1.weight"
    trained = whole[f"model.{name}"]
    assert torch.allclose(model.state_dict()[name], trained, atol=1e-3)  # kept in float16
    assert 3e6 < sum(p.numel() for p in model.parameters()) < 12e6
    assert (tmp_path / "checkpoint" / "model.safetensors").stat().st_size <= 24e6
    # Who uses the checkpoint gives the encoder the pixels that it was trained on.
    document = json.loads((tmp_path / "checkpoint" / "preprocessor_config.json").read_text())
    assert document["image_mean"] == [script.MEAN] * 3
    assert document["image_std"] == [script.STD] * 3


def test_a_question_sees_the_picture_and_itself_and_a_chat_what_was_said(script):
    groups = torch.tensor([[0, 0, 1, 1, -1], [0, 0, 1, 1, -1]])
    batch = {"groups": groups, "chat": torch.tensor([False, True])}
    batch["positions"] = torch.tensor([[0, 1, 0, 1, 0], [0, 1, 2, 3, 0]])
    mask, positions = script.attention(batch, before=3)
    seen = mask[:, 0] == 0
    assert seen[:, :, :3].tril().sum() == 2 * (1 + 2 + 6 * 3)  # the picture, causally, by all
    assert seen[0, 5].tolist() == [True] * 3 + [False, False, True, False, False]
    assert seen[1, 5].tolist() == [True] * 6 + [False] * 2
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 3]


def test_labels_are_what_comes_next_and_only_of_answers(script):
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))  # trained by the script
    batches = script.Batches(tokenizer, None, 0, 2)
    asked = [Question("read", "Read the text.", "A7"), Question("size", "How big?", "small")]
    for chat in (False, True):
        phrases = {"the text": [7] * len(script.REFERRED)}
        sample = script.Sample([], [], list(asked), phrases, chat)
        ids, labels, places, groups, meant = batches.text(sample)
        answer = [i for i in range(len(ids)) if labels[i] != script.IGNORE]
        said = tokenizer.decode([labels[i] for i in answer], skip_special_tokens=False)
        assert said.replace(" ", "") == f"A7{script.END}small{script.END}"
        assert all(ids[i + 1] == labels[i] for i in answer)
        assert places[groups.index(1)] == (groups.index(1) if chat else 0)
        assert [(tokenizer.decode([ids[at]]), of) for at, of in meant.items()] == [
            (" text", phrases["the text"])
        ]


def test_dense_labels_name_what_is_under_a_token(script):
    width, height = text_size("LW", 3, 60)  # a font whose letters are equally wide
    items = (Item("text", "LW", "red", "", 84, 84, width, height, font=3, points=60),)
    labels = script.dense(items, ())
    names = [script.WHAT[w] for w in labels[7, :, 0]]
    found = [name for name in names if name]
    assert found == ["L"] * (len(found) // 2) + ["W"] * (len(found) // 2)
    assert {script.COLOUR[c] for c in labels[7, :, 1]} == {"", "red"}


def test_dense_labels_say_where_the_middle_is(script):
    items = (Item("shape", "star", "red", "large", 90, 42, 52, 52),)
    labels = script.dense(items, ())
    row, column = 42 // 12, 90 // 12
    inside = labels[..., 0] > 0
    assert inside.sum() > 9
    assert {tuple(x) for x in labels[inside][:, 3:6]} == {(row + 1, column + 1, 0)}
    assert labels[row, column, 6] == 2
    assert set(labels[inside][:, 6]) == {1, 2}
    assert (labels[..., 6] == 2).sum() == 1  # what can be counted
    width, height = text_size("LW", 3, 60)
    text = (Item("text", "LW", "red", "", 84, 84, width, height, font=3, points=60),)
    assert (script.dense(text, ())[..., 6] == 2).sum() == 2


def test_phrases_refer_to_items_with_places_and_to_how_many(script):
    star = Item("shape", "star", "red", "large", 90, 42, 52, 52)
    ring = Item("shape", "ring", "red", "small", 30, 150, 26, 26)
    scene = script.Scene("objects", (star, ring))
    question = "Is the star above or below the red ring?"
    ends = script.marks(script.in_scene(scene), question)
    said = {question[:end].split()[-1]: found for end, found in ends.items()}
    assert said.keys() == {"star", "ring"}
    what, colour, size, row, column, *rest = said["star"]
    assert (script.WHAT[what], script.COLOUR[colour], script.SIZES[size]) == (
        "star",
        "red",
        "large",
    )
    assert (row, column) == (42 // 12, 90 // 12)
    assert set(rest) == {script.IGNORE}

    (found,) = script.marks(script.in_scene(scene), "How many red objects are there?").values()
    assert found[:-2] == [script.IGNORE] * (len(script.REFERRED) - 2)
    assert found[-2] == 2


def test_phrases_about_the_odd_one(script):
    usual, odd = (Item("shape", "star", c, "small", 30, 30, 26, 26) for c in ("red", "blue"))
    scene = script.Scene("odd", (odd, usual.at(90, 90), usual.at(90, 30)), odd=0)
    phrases = script.in_scene(scene)
    for question, words in {
        "Which object is the odd one out?": ["object", "odd", "out"],
        "Where is the one that differs?": ["one", "differs"],
        "Which object differs from the rest?": ["object", "rest"],
    }.items():
        found = script.marks(phrases, question)
        colours = {question[:e].split()[-1]: script.COLOUR[of[1]] for e, of in found.items()}
        assert colours == dict.fromkeys(words[:-1], "red") | {words[-1]: "blue"}


def test_phrases_about_a_clip_say_where_it_was_and_when(script):
    star = Item("shape", "star", "red", "medium", 30, 30, 38, 38)
    ring = Item("shape", "ring", "blue", "medium", 100, 100, 38, 38)
    moved = tuple((star.at(30 + 12 * n, 30),) for n in range(5))
    (facts,) = script.marks(
        script.in_clip(script.Clip("move", moved, ())), "Which way does the red star move?"
    ).values()
    assert facts[3:9] == [2, 2, 2, 4, 2, 6]

    came = script.Clip("order", ((star,), (star,), (star, ring)), ())
    phrases = script.in_clip(came)
    assert phrases["came last"] == phrases["came second"] == phrases["the blue ring"]
    assert phrases["came second"][-1] == 2
    assert phrases["the red star"][-1] == 0


def test_tokens_in_focus_see_items_and_keep_their_positions(script):
    what = torch.zeros(2, 1, 14, 14, dtype=torch.int64)
    what[:, :, 3:5, 6:9] = 4
    kept, total = script.focus(what, Random(0))
    assert total == 196
    assert kept.shape[1] < 196
    assert {14 * r + c for r in (3, 4) for c in (6, 7, 8)} <= set(kept[0].tolist())
    batch = {"groups": torch.zeros(2, 3, dtype=torch.int64), "chat": torch.tensor([False] * 2)}
    batch |= {"positions": torch.arange(3).expand(2, 3), "kept": kept, "of": total}
    _, positions = script.attention(batch, before=kept.shape[1] + 2)
    assert positions[0].tolist() == [0, *(kept[0] + 1).tolist(), 197, 198, 199, 200]


def test_places_are_asked_only_in_training(script):
    items = (Item("shape", "star", "red", "large", 30, 30, 52, 52),)
    scene = script.scenes.Scene("objects", items)
    asked = {(q.prompt, q.answer) for q in script.located(scene)}
    assert ("Where is the red star?", "top left") in asked
    middle = script.scenes.Scene("objects", (items[0].at(56, 84),))  # on the border of thirds
    assert script.located(middle) == []


def test_rounds_of_questions_have_each_task(script):
    asked = [Question("place", str(n), "left") for n in range(30)]
    asked += [Question("count", "how many", "3"), Question("size", "how big", "small")]
    first = [q.task for q in script.balanced(asked, Random(0))]
    assert set(first[:3]) == {"place", "count", "size"}
    assert len(first) == 20


def test_the_rate_rises_stays_and_falls(script):
    rates = [script.rate_at(step, 1000, 100, 0.2) for step in (0, 99, 500, 800, 900, 999)]
    assert np.allclose(rates, [0.01, 1, 1, 1, 0.5, 0.005])
