"""NLVR in its published layout, and what is refused."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.evaluation.datasets.nlvr import examples
from edgevlm.evaluation.datasets.shared.sentences import PROMPT, true_or_false

LINES = (
    ("7-0", "There is a box .", "true", "0"),
    ("12-3", "No box", "false", "1"),
    ("7-2", "There is a box .", "false", "0"),
)


@pytest.fixture
def nlvr(tmp_path):
    """Splits `test` and `dev`; the picture of identifier n-m is n wide and m + 1 high."""
    for split in ("test", "dev"):
        folder = tmp_path / "nlvr" / split
        with_extra = {"evals": {"r1": "true"}, "structured_rep": [[], [], []]}
        rows = []
        for identifier, sentence, label, directory in LINES[: 3 if split == "test" else 1]:
            rows.append({"sentence": sentence, "label": label, "identifier": identifier,
                         "directory": directory, **with_extra})  # fmt: skip
            (folder / "images" / directory).mkdir(parents=True, exist_ok=True)
            number, position = map(int, identifier.split("-"))
            for permutation in range(2):
                size = (number + 100 * permutation, position + 1)
                name = f"{split}-{identifier}-{permutation}.png"
                Image.new("RGB", size).save(folder / "images" / directory / name)
        (folder / f"{split}.json").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "nlvr"


def test_each_sentence_has_one_picture_and_a_set_is_a_scene(nlvr):
    found = list(examples(nlvr))
    assert [e.scene for e in found] == ["7", "12", "7"]
    assert [e.frames[0].size for e in found] == [(7, 1), (12, 4), (7, 3)]
    questions = [e.questions[0] for e in found]
    assert [q.answer for q in questions] == ["true", "false", "false"]
    assert {q.task for q in questions} == {"nlvr"}
    assert questions[1].prompt == "No box. True or false?"


def test_limit_counts_scenes(nlvr):
    assert [e.scene for e in examples(nlvr, limit=1)] == ["7", "7"]


def test_the_folder_of_a_split(nlvr, monkeypatch):
    assert len(list(examples(nlvr / "test"))) == 3
    assert len(list(examples(nlvr / "dev"))) == 1
    monkeypatch.chdir(nlvr / "dev")
    assert len(list(examples("."))) == 1


@pytest.mark.parametrize("sentence", ["A box", "A box.", " A box .\n", "A box..", "A box. . "])
def test_a_sentence_ends_in_one_full_stop(sentence):
    assert true_or_false(sentence) == "A box. True or false?"
    assert PROMPT.format(sentence="A box.") == true_or_false(sentence)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "True"}, "'label' is 'True', which NLVR never has"),
        ({"label": True}, "'label' is True, which NLVR never has"),
        ({"sentence": " . "}, "'sentence' is ' . ', which NLVR never has"),
        ({"identifier": "../7-0"}, "'identifier' is '../7-0', which NLVR never has"),
        ({"identifier": "7-0\n"}, "'identifier' is '7-0\\n', which NLVR never has"),
        ({"directory": "../0"}, "'directory' is '../0', which NLVR never has"),
        ({"directory": None}, "'directory' is None, which NLVR never has"),
        ({"identifier": "9-0"}, "no file 'images/0/test-9-0-0.png'"),
    ],
)
def test_a_wrong_line_is_one_line(nlvr, change, message):
    file = nlvr / "test" / "test.json"
    line = json.loads(file.read_text().splitlines()[0]) | change
    file.write_text(json.dumps(line))
    with pytest.raises(InputError) as error:
        examples(nlvr)
    assert str(error.value) == f"'{file}' line 1: {message}"


def test_no_such_folder(nlvr):
    expected = r"^no NLVR at '.*': expected a folder with test/test.json, or a split's folder$"
    for path in (nlvr / "no", nlvr / "test" / "images", nlvr / "test" / "test.json"):
        with pytest.raises(InputError, match=expected):
            examples(path)
    (nlvr / "test" / "test.json").write_text("\n")
    with pytest.raises(InputError, match=r"test.json' has no sentences$"):
        examples(nlvr)
