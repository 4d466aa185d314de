"""The embedded dataset: what it asks, in which order, of which pictures."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

from edgevlm.evaluation.datasets import embedded
from edgevlm.evaluation.datasets.shared import clips, material, questions, scenes


def tasks(frames, limit=None):
    found = embedded.examples(None, frames, limit)
    return Counter(q.task for e in found for q in e.questions)


def test_a_still_bundle_is_asked_every_image_task_and_no_other():
    assert set(tasks(1, 120)) == set(questions.IMAGE_TASKS)


def test_a_clip_bundle_is_asked_the_clip_tasks_too():
    assert set(tasks(6, 120)) == {*questions.IMAGE_TASKS, *clips.CLIP_TASKS}
    assert not set(tasks(2, 60)) & set(clips.CLIP_TASKS)


def test_a_limit_takes_the_first_scenes_and_a_scene_never_changes():
    few, more = (list(embedded.examples(None, 5, n)) for n in (7, 20))
    assert len(few) == 7
    for a, b in zip(few, more, strict=False):
        assert (a.scene, a.questions, a.chat) == (b.scene, b.questions, b.chat)
        assert [f.tobytes() for f in a.frames] == [f.tobytes() for f in b.frames]


def test_each_scene_has_a_name_of_its_own_and_one_question_of_a_task():
    found = list(embedded.examples(None, 4, 60))
    assert len({e.scene for e in found}) == 60
    for example in found:
        assert len({q.task for q in example.questions}) == len(example.questions) >= 1
        assert len(example.frames) in (1, 4)


def test_some_scenes_are_chats_of_several_turns():
    chats = [e for e in embedded.examples(None, 1, 100) if e.chat]
    assert 8 <= len(chats) <= 20
    assert all(len(e.questions) > 1 for e in chats)


def test_hands_of_all_digits_come_early():
    early = [e for e in embedded.examples(None, 1, 60) if e.scene.startswith("hand")]
    assert len({q.answer for e in early for q in e.questions}) == 10


def test_the_package_has_twenty_hands_of_each_digit_and_the_emoji():
    packaged = material.packaged_material()
    assert Counter(packaged.digits) == {str(d): 20 for d in range(10)}
    assert all(photo.size == (100, 100) for photo in packaged.photos)
    assert len(packaged.emoji) == 150
    assert all(emoji.mode == "RGBA" for emoji in packaged.emoji)


def test_people_are_split_in_blocks(tmp_path):
    files = [tmp_path / f"{n:03d}" for n in range(165)]
    parts = {s: set(material._people(files, s)) for s in scenes.SPLITS}
    assert [len(parts[s]) for s in scenes.SPLITS] == [133, 12, 20]
    assert set.union(*parts.values()) == set(files)
    assert max(parts["train"]) < min(parts["validation"]) < min(parts["test"])


def test_emoji_are_in_one_split_each_and_most_train():
    splits = Counter(material.emoji_split(f"emoji_u{n:x}.png") for n in range(1200))
    assert splits["train"] > 900
    assert min(splits["test"], splits["validation"]) > 60


def test_sheets_are_read_back(tmp_path):
    sheet = Image.new("RGB", (40, 20), "red")
    sheet.paste("blue", (20, 0, 40, 20))
    assert [t.getpixel((5, 5)) for t in material._tiles(sheet, 20)] == [(255, 0, 0), (0, 0, 255)]


def test_another_process_gets_the_same_questions():
    code = (
        "from edgevlm.evaluation.datasets import embedded as e;"
        "print([(x.scene, x.questions) for x in e.examples(None, 5, 30)])"
    )
    here = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=here | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(said) == 1
