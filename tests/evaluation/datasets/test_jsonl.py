"""A user's own questions: both forms of a line, and what a hostile file may not do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.evaluation.datasets.jsonl import examples
from edgevlm.evaluation.datasets.shared import lines
from edgevlm.evaluation.examples import Question

ASKED = {"prompt": "What?", "answer": "a cup"}


@pytest.fixture
def write(tmp_path):
    """A folder with six grey pictures, 0.png to 5.png of value 40 i, and a file of given lines."""
    folder = tmp_path / "set"
    folder.mkdir()
    for index in range(6):
        Image.new("RGB", (8, 6), (40 * index,) * 3).save(folder / f"{index}.png")

    def make(*lines):
        path = folder / "q.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(texts) + "\n", "utf-8")
        return path

    return make


def shades(example):
    return [int(np.asarray(picture)[0, 0, 0]) for picture in example.frames]


def test_a_line_with_one_question(write):
    (found,) = examples(write({"image": "2.png", **ASKED, "task": "count"}))
    assert found.scene == "line 1"
    assert found.questions == (Question("count", "What?", "a cup"),)
    assert shades(found) == [80]
    assert not found.chat


def test_a_line_with_several_questions(write):
    line = {
        "scene": "s",
        "image": "1.png",
        "chat": True,
        "questions": [ASKED, ASKED | {"task": "t"}],
    }
    (found,) = examples(write(line))
    assert (found.scene, found.chat) == ("s", True)
    assert [question.task for question in found.questions] == ["question", "t"]


def test_line_numbers_count_empty_lines_and_limit_counts_scenes(write):
    a, b = ({"scene": name, "image": "0.png", **ASKED} for name in "ab")
    path = write(a, "", b, a, {"image": "0.png", **ASKED})
    assert [e.scene for e in examples(path)] == ["a", "b", "a", "line 5"]
    assert [e.scene for e in examples(path, limit=1)] == ["a", "a"]


def test_frames_of_a_clip_are_spread_evenly(write):
    path = write({"frames": [f"{i}.png" for i in range(6)], **ASKED})
    (found,) = examples(path, frames=3)
    assert shades(found) == [0, 80, 200]
    (found,) = examples(path, frames=6)
    assert shades(found) == [0, 40, 80, 120, 160, 200]
    with pytest.raises(InputError, match=r"line 1.frames has 6 images, the model takes 7$"):
        list(examples(path, frames=7))


def test_a_clip_is_not_decoded_for_a_model_of_pictures(write):
    path = write({"video": "q.jsonl", **ASKED}, {"frames": ["0.png"], **ASKED})
    assert [e.frames for e in examples(path)] == [(), ()]


def test_a_video(write):
    av = pytest.importorskip("av")
    path = write({"video": "clip.mp4", **ASKED})
    with av.open(str(path.parent / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(5):
            frame = Image.new("RGB", (64, 48), (40 * index,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    (found,) = examples(path, frames=2)
    np.testing.assert_allclose(shades(found), [0, 160], atol=6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"image": "0.png", "promt": "?", "answer": "a"},
         " has an unknown key 'promt'; did you mean 'prompt'?"),
        ({"image": "0.png", "questions": [ASKED | {"anser": "x"}]},
         ".questions[0] has an unknown key 'anser'; did you mean 'answer'?"),
        ({"image": "0.png", "questions": [{"prompt": "?"}]},
         ".questions[0] lacks the key 'answer'"),
        ({"image": "0.png", "questions": ["?"]}, ".questions[0] must be an object, got '?'"),
        ({"image": "0.png", "questions": []}, ".questions is empty"),
        ({"image": "0.png", "questions": [ASKED], "prompt": "?"},
         " has both 'questions' and a question of its own"),
        ({"image": "0.png", "answer": "a"}, " lacks the key 'prompt', or 'questions'"),
        ({"image": "0.png", "prompt": "a"}, " lacks the key 'answer', or 'questions'"),
        ({"image": "0.png", "prompt": " ", "answer": "a"},
         " has a question with an empty 'prompt'"),
        ({"image": "0.png", **ASKED, "chat": 1}, ".chat must be bool, got 1"),
        ({"image": 5, **ASKED}, ".image must be text, got 5"),
        (ASKED, " must have one of 'image', 'frames', 'video', got none"),
        ({"image": "0.png", "video": "v", **ASKED},
         " must have one of 'image', 'frames', 'video', got 'image' and 'video'"),
        ({"image": "no.png", **ASKED}, ": no file 'no.png'"),
        ({"image": "x" * 5000, **ASKED}, ": no file '" + "x" * 56 + "..."),
        ({"image": ".", **ASKED}, ": '.' is not a file"),
        ([1], " must be a JSON object, got a list"),
        ("{", " is not valid JSON: Expecting property name enclosed in double quotes"),
        ("[" * 100_000, " is not valid JSON: "),
        ('{"image": "0.png", "prompt": "a", "prompt": "b", "answer": "c"}',
         " is not valid JSON: the key 'prompt' appears twice in one object"),
        ('{"image": "0.png", "prompt": "\\ud800", "answer": "a"}', " has text that is not valid"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_one_line_with_its_number(write, line, message):
    path = write({"image": "0.png", **ASKED}, line)
    with pytest.raises(InputError) as error:
        examples(path)  # before the first example is asked for
    assert str(error.value).startswith(f"'{path}' line 2{message}")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "..\\x", "C:/x", "", "a\0b"]
)
def test_a_path_may_not_leave_the_folder(write, name):
    path = write({"image": name, **ASKED})
    Image.new("RGB", (8, 6)).save(path.parent.parent / "secret.png")
    with pytest.raises(InputError, match=r"must be relative to the dataset's folder, without '..'"):
        examples(path)


def test_a_link_may_not_leave_the_folder(write):
    path = write({"image": "link.png", **ASKED})
    Image.new("RGB", (8, 6)).save(path.parent.parent / "secret.png")
    (path.parent / "link.png").symlink_to("../secret.png")
    with pytest.raises(InputError, match=r"'link.png' is a link that leads out of the dataset's"):
        examples(path)
    (path.parent / "link.png").unlink()
    (path.parent / "link.png").symlink_to("3.png")
    (found,) = examples(path)
    assert shades(found) == [120]
    (path.parent / "link.png").unlink()
    (path.parent / "link.png").symlink_to("link.png")
    with pytest.raises(InputError, match=r"no file 'link.png'"):
        examples(path)


def test_a_file_that_begins_with_a_byte_order_mark(write):
    path = write({"image": "2.png", **ASKED})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (found,) = examples(path)
    assert shades(found) == [80]


def test_a_file_that_is_none(write, monkeypatch):
    path = write()
    with pytest.raises(InputError, match=r"q.jsonl' has no questions$"):
        examples(path)
    with pytest.raises(InputError, match=r"^no file at '.*no.jsonl'$"):
        examples(path.parent / "no.jsonl")
    with pytest.raises(InputError, match=r"is a folder, expected a file of JSON lines$"):
        examples(path.parent)
    with pytest.raises(InputError, match=r"is not UTF-8 text$"):
        examples(path.parent / "0.png")
    monkeypatch.setattr(lines, "LINE_LIMIT", 100)
    with pytest.raises(InputError, match=r"line 1 has over 100 characters"):
        examples(write({"image": "0.png", "prompt": "?" * 100, "answer": "a"}))
